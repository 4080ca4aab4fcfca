package ai.chainfed.core

import ai.chainfed.v1.GlobalBranchStatistics
import ai.chainfed.v1.TrainTask

/** What the device algorithm does differently for a classifier and for a language model. */
internal interface Objective {
    /** The trainable inputs of a window's program and the tensors of the model state that they are. */
    fun trained(
        firstLayer: Int,
        windowSize: Int,
    ): Map<String, String>

    /** Those of the trained tensors whose change is handed in. */
    fun changed(
        task: TrainTask,
        names: Map<String, String>,
    ): Map<String, String>

    /** The inputs of a window's program, beside layers, that no batch changes. */
    fun constants(
        task: TrainTask,
        scope: Mappings.Scope,
    ): Map<String, TensorView>

    /** What a training step is to predict, the mean over it being the loss. */
    fun targets(rows: IntArray): Map<String, TensorView>

    /** How many predictions [targets] asks for. */
    fun numTargets(rows: IntArray): Int

    /** The inputs of `score` that no batch changes. */
    fun scoring(scope: Mappings.Scope): Map<String, TensorView>

    /**
     * All there is to predict in these rows of a stored batch, as often as `score` has to run for it, and how much each
     * time.
     */
    fun scored(rows: IntArray): Sequence<Pair<Map<String, TensorView>, Int>>
}

internal fun objectiveOf(work: Work): Objective =
    if (work.bundle.manifest.isLanguageModel) LanguageModel(work) else Classifier(work)

/** The adapters of a window, by the names of its program's inputs. */
private fun windowAdapters(
    firstLayer: Int,
    windowSize: Int,
): LinkedHashMap<String, String> {
    val names = LinkedHashMap<String, String>()
    for (index in 0 until windowSize) {
        val (down, up) = adapterNames(firstLayer + index)
        names["trainable.window.$index.down"] = down
        names["trainable.window.$index.up"] = up
    }
    return names
}

private fun endOf(task: TrainTask): Int = task.firstLayer + task.windowSize - 1

/**
 * Labels of whole rows, predicted by heads that are trained with the adapters; the final head stands at both places in
 * the end.
 */
internal class Classifier(
    private val work: Work,
) : Objective {
    private val manifest = work.bundle.manifest
    private val last = manifest.model.numLayers - 1

    override fun trained(
        firstLayer: Int,
        windowSize: Int,
    ): Map<String, String> {
        val names = windowAdapters(firstLayer, windowSize)
        val heads = listOf("trainable.local_head" to firstLayer + windowSize - 1, "trainable.final_head" to last)
        for ((prefix, layer) in heads) {
            val (weight, bias) = headNames(layer)
            names["$prefix.weight"] = weight
            names["$prefix.bias"] = bias
        }
        return names
    }

    override fun changed(
        task: TrainTask,
        names: Map<String, String>,
    ): Map<String, String> =
        if (endOf(task) < last && task.finalHeadLr > 0) names else names.filterKeys { ".final_head." !in it }

    override fun constants(
        task: TrainTask,
        scope: Mappings.Scope,
    ): Map<String, TensorView> {
        val end = endOf(task)
        val lastLayer = task.globalBranchStatistics == GlobalBranchStatistics.GLOBAL_BRANCH_STATISTICS_LAST_LAYER
        return work.state.statistics(end, "local_") +
            work.state.statistics(if (lastLayer) last else end, "final_") +
            mapOf(
                "head_lr" to TensorView.scalar(task.headLr),
                "final_head_lr" to TensorView.scalar(if (end == last) 0f else task.finalHeadLr),
            )
    }

    override fun targets(rows: IntArray): Map<String, TensorView> = labelled(rows, (1.0 / rows.size).toFloat())

    override fun numTargets(rows: IntArray): Int = rows.size

    override fun scoring(scope: Mappings.Scope): Map<String, TensorView> = work.state.head(last)

    override fun scored(rows: IntArray): Sequence<Pair<Map<String, TensorView>, Int>> =
        sequenceOf(labelled(rows, 1f) to rows.size)

    private fun labelled(
        rows: IntArray,
        each: Float,
    ): Map<String, TensorView> {
        val size = manifest.batchSize
        val labels = TensorView.allocate(listOf(size), TensorType.INT64)
        labels.longs().let { target -> padded(rows, size).forEach { target.put(work.data.labels[it].toLong()) } }
        val weights = TensorView.allocate(listOf(size))
        weights.floats().let { target -> repeat(rows.size) { target.put(each) } }
        return mapOf("labels" to labels, "sample_weights" to weights)
    }
}

/** The tokens that follow, predicted by the model's own frozen head. */
internal class LanguageModel(
    private val work: Work,
) : Objective {
    private val manifest = work.bundle.manifest
    private val most = manifest.task.maxTargetTokens

    override fun trained(
        firstLayer: Int,
        windowSize: Int,
    ): Map<String, String> = windowAdapters(firstLayer, windowSize)

    override fun changed(
        task: TrainTask,
        names: Map<String, String>,
    ): Map<String, String> = names

    override fun constants(
        task: TrainTask,
        scope: Mappings.Scope,
    ): Map<String, TensorView> = scoring(scope)

    override fun targets(rows: IntArray): Map<String, TensorView> =
        feed(rows, skip = 0, each = (1.0 / numTargets(rows)).toFloat())

    override fun numTargets(rows: IntArray): Int = rows.sumOf { minOf(places(it).size, most) }

    override fun scoring(scope: Mappings.Scope): Map<String, TensorView> = work.bundle.languageHead(scope)

    override fun scored(rows: IntArray): Sequence<Pair<Map<String, TensorView>, Int>> {
        val longest = rows.maxOf { places(it).size }
        return (0 until longest step most).asSequence().map { skip ->
            feed(rows, skip, 1f) to rows.sumOf { (places(it).size - skip).coerceIn(0, most) }
        }
    }

    /** The positions of a row at which something is to be predicted, ascending. */
    private fun places(row: Int): List<Int> {
        val start = row * manifest.seqLen
        return (0 until manifest.seqLen).filter { work.data.labels[start + it] != NO_TARGET }
    }

    /** At most [most] targets of each row after the first [skip]; what is not used is 0 and weighs nothing. */
    private fun feed(
        rows: IntArray,
        skip: Int,
        each: Float,
    ): Map<String, TensorView> {
        val shape = listOf(manifest.batchSize, most)
        val places = TensorView.allocate(shape, TensorType.INT64)
        val tokens = TensorView.allocate(shape, TensorType.INT64)
        val weights = TensorView.allocate(shape)
        rows.forEachIndexed { index, row ->
            places(row).drop(skip).take(most).forEachIndexed { slot, place ->
                val at = index * most + slot
                places.longs().put(at, place.toLong())
                tokens.longs().put(at, work.data.labels[row * manifest.seqLen + place].toLong())
                weights.floats().put(at, each)
            }
        }
        return mapOf("target_places" to places, "targets" to tokens, "target_weights" to weights)
    }
}
