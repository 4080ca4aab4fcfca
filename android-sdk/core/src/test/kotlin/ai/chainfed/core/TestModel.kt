package ai.chainfed.core

import java.io.File

/**
 * A model of [numLayers] layers with the signatures and weights of a bundle in tests/vectors, whose programs are those
 * of [MixingRuntime], and a model state in which nothing is zero.
 */
internal class TestModel(
    name: String,
    private val folder: File,
    numLayers: Int = 5,
    val runtime: MixingRuntime = MixingRuntime(),
) {
    private val source = File(Vectors.folder, "bundles/$name/bundle")
    val manifest: Manifest
    val bundle: DeviceBundle
    val stateFile = File(folder, "state.safetensors")
    val mappings = Mappings()

    init {
        val small = readManifest(File(source, "manifest.json").readBytes(), "The manifest")
        val programs = small.programs.mapValues { (name, entry) -> withAuxiliary(name, entry, small, numLayers) }
        manifest = small.copy(model = small.model.copy(numLayers = numLayers), programs = programs)
        val files = small.files.keys.associateWith { File(source, it) }
        val layers =
            (0 until numLayers).associate {
                Manifest.layerFile(
                    it,
                ) to File(source, Manifest.layerFile(it % 2))
            }
        bundle = DeviceBundle(manifest, "b".repeat(64), files + layers, runtime)
        val generator = SplitMix64(1)
        val tensors =
            manifest.stateShapes().mapValues { (_, shape) ->
                val size = shape.fold(1, Int::times)
                HeapTensor(shape, FloatArray(size) { generator.below(1000) / 1000f + 0.001f })
            }
        writeTensors(stateFile, tensors)
    }

    /** A window's program takes the adapters of as many layers as the model has beside it. */
    private fun withAuxiliary(
        name: String,
        entry: ProgramEntry,
        small: Manifest,
        numLayers: Int,
    ): ProgramEntry {
        if (!name.startsWith("window_q")) return entry
        val after = numLayers - name.removePrefix("window_q").toInt()
        val shape = listOf(after, small.bottleneck, small.model.hiddenSize)
        val stacks = listOf("aux.down", "aux.up").map { TensorSpec(it, shape, TensorType.FLOAT32) }
        return entry.copy(inputs = entry.inputs.filterNot { it.name.startsWith("aux.") } + stacks)
    }

    /** [numRows] rows of random tokens, of every length. */
    fun data(numRows: Int = 7): TokenData {
        val generator = SplitMix64(2)
        val seqLen = manifest.seqLen
        val lengths = IntArray(numRows) { 2 + it % (seqLen - 1) }
        val ids = IntArray(numRows * seqLen) { generator.below(manifest.model.vocabSize) }
        val labels =
            if (manifest.isLanguageModel) {
                IntArray(numRows * seqLen) {
                    if (it % seqLen < lengths[it / seqLen] - 1) ids[it + 1] else NO_TARGET
                }
            } else {
                IntArray(numRows) { it % manifest.numLabels }
            }
        return TokenData(ids, lengths, labels, seqLen, manifest.batchSize)
    }

    fun journal(name: String): Journal = Journal(File(folder, name), mapOf("assignment" to name))

    /** Runs [task] on the work whose journal is called [name]. */
    suspend fun <T> withWork(
        name: String,
        kept: KeptDepth? = null,
        checkpoint: suspend (String) -> Unit = {},
        task: suspend (Work) -> T,
    ): T =
        journal(name).use { journal ->
            mappings.Scope().use { scope ->
                val state = ModelState(manifest, mapOf("all" to Shard(stateFile, scope)))
                task(Work(bundle, state, data(), journal, 5, kept, mappings, {}, checkpoint))
            }
        }
}

/** A process that was killed. */
internal class Killed : Exception("killed")
