package ai.chainfed.core

import java.io.File

/**
 * All that a task works with.
 *
 * [kept]: where the output of the layers that never change goes. [checkpoint]: called with what is being done before
 * every pass and stage, with an empty text after every batch and step; throws to stop the work. [prefetch]: reads a
 * file ahead.
 */
internal class Work(
    val bundle: DeviceBundle,
    val state: ModelState,
    val data: TokenData,
    val journal: Journal,
    val seed: Long,
    val kept: KeptDepth?,
    val mappings: Mappings,
    val prefetch: (File) -> Unit,
    val checkpoint: suspend (String) -> Unit,
) {
    /** (batch, seq, hidden) */
    val hiddenShape: List<Int> =
        listOf(bundle.manifest.batchSize, bundle.manifest.seqLen, bundle.manifest.model.hiddenSize)

    /** The kept depth, when what is needed does not lie below it. */
    fun keptUpTo(depth: Int): KeptDepth? = kept?.takeIf { it.depth <= depth }

    /** The rows of every training step. */
    fun steps(epochs: Int): List<IntArray> = trainingSteps(data.numRows, bundle.manifest.batchSize, epochs, seed)

    /** The same work over other rows. */
    fun over(data: TokenData): Work = Work(bundle, state, data, journal, seed, kept, mappings, prefetch, checkpoint)
}
