package ai.chainfed.core

import java.io.Closeable

/**
 * Pooled features of some layers in a file of the assignment: for each of them (batches x batch size, hidden) float32.
 */
internal class Features(
    private val work: Work,
    numLayers: Int,
) : Closeable {
    private val data = work.data
    private val width = work.bundle.manifest.model.hiddenSize
    private val batch = TensorView.allocate(listOf(data.batchSize, width))
    private val file = SlotFile(work.journal.path("features"), numLayers * data.numBatches, batch.bytes.capacity())

    /** Pools one batch of hidden states for the layer at [index] and keeps its features. */
    fun put(
        index: Int,
        batchNumber: Int,
        features: ProgramOutputs,
    ) {
        batch.floats().put(features.floats("features"))
        file.write(index * data.numBatches + batchNumber, batch)
    }

    /** The features of some rows of the layer at [index], (rows, hidden). */
    fun rows(
        index: Int,
        rows: IntArray,
    ): TensorView {
        val target = TensorView.allocate(listOf(rows.size, width))
        HiddenView(file, index * data.numBatches, data.batchSize).readRows(rows, target)
        return target
    }

    override fun close(): Unit = file.close()
}
