package ai.chainfed.core

/** `manifest.json` of a bundle (`docs/bundle.md`), as far as a device needs it. Layers are counted from 0. */
internal data class Manifest(
    val model: ModelFacts,
    val task: TaskFacts,
    val padTokenId: Long,
    val batchSize: Int,
    val seqLen: Int,
    val bottleneck: Int,
    val programs: Map<String, ProgramEntry>,
    val windows: Map<Int, MemoryPlan>,
    val prefix: MemoryPlan,
    val files: Map<String, FileEntry>,
) {
    /** Labels of a classifier; 0 of a language model. */
    val numLabels: Int get() = task.labels.size

    val isLanguageModel: Boolean get() = task.kind == TaskKind.LANGUAGE_MODELLING

    val hasTokenizer: Boolean get() = TOKENIZER_FILE in files

    /** Whether every layer has a block program of its own, which holds its weights. */
    val blocksHoldWeights: Boolean get() = frozenBlockProgram(0) in programs

    /** Name of the program that passes hidden states through a layer and its adapter. */
    fun blockProgram(layer: Int): String = if (blocksHoldWeights) frozenBlockProgram(layer) else "block"

    /** Peak of a device's own memory in a training round: prefix and window follow each other. */
    fun roundBytes(windowSize: Int): Long = maxOf(prefix.anonymousBytes, windows[windowSize]?.anonymousBytes ?: 0)

    /** Shape of every tensor of the model state. */
    fun stateShapes(): Map<String, List<Int>> {
        val shapes = LinkedHashMap<String, List<Int>>()
        for (layer in 0 until model.numLayers) {
            for (name in adapterNames(layer)) shapes[name] = listOf(bottleneck, model.hiddenSize)
            if (numLabels == 0) continue
            val (weight, bias) = headNames(layer)
            shapes[weight] = listOf(numLabels, model.hiddenSize)
            shapes[bias] = listOf(numLabels)
            for (name in statisticsNames(layer)) shapes[name] = listOf(model.hiddenSize)
        }
        return shapes
    }

    companion object {
        const val FORMAT_VERSION = 1
        const val TOKENIZER_FILE = "tokenizer.json"
        const val EMBEDDINGS_FILE = "weights/embeddings.safetensors"
        const val OUTPUT_FILE = "weights/output.safetensors"

        fun layerFile(layer: Int): String = "weights/layer_${twoDigits(layer)}.safetensors"

        fun windowProgram(windowSize: Int): String = "window_q$windowSize"

        private fun frozenBlockProgram(layer: Int): String = "block_${twoDigits(layer)}"

        private fun twoDigits(layer: Int): String = layer.toString().padStart(2, '0')
    }
}

internal data class ModelFacts(
    val numLayers: Int,
    val hiddenSize: Int,
    val vocabSize: Int,
    val outputTensors: List<String>,
    val languageHead: LanguageHead?,
)

/** Where a language model's head lies, one (vocabulary, hidden) tensor. */
internal data class LanguageHead(
    val file: String,
    val tensor: String,
)

internal enum class TaskKind { CLASSIFICATION, LANGUAGE_MODELLING }

internal data class TaskFacts(
    val kind: TaskKind,
    val labels: List<String>,
    val maxTargetTokens: Int,
    val packing: Boolean,
    val chat: Chat?,
)

/** How a conversation becomes one text (`docs/bundle.md`, `chat`). */
internal data class Chat(
    val between: Map<String, String>,
    val endOfTurn: String,
    val strip: Boolean,
    val specialTokens: Boolean,
)

/** A program and its tensors in the order in which it takes and gives them. */
internal data class ProgramEntry(
    val file: String,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
)

internal data class MemoryPlan(
    val anonymousBytes: Long,
    val fileBytes: Long,
)

internal data class FileEntry(
    val bytes: Long,
    val sha256: String,
)
