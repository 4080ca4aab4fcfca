package ai.chainfed.core

/** `adapters.{layer}.down` and `.up`, [bottleneck, hidden] each: the adapter after a layer (Eq. 1). */
internal fun adapterNames(layer: Int): List<String> = listOf("adapters.$layer.down", "adapters.$layer.up")

/** `heads.{layer}.weight` [labels, hidden] and `.bias` [labels]. */
internal fun headNames(layer: Int): List<String> = listOf("heads.$layer.weight", "heads.$layer.bias")

/** `statistics.{layer}.mean` and `.rstd`, [hidden] each. */
internal fun statisticsNames(layer: Int): List<String> = listOf("statistics.$layer.mean", "statistics.$layer.rstd")

/** Rows that heads have in programs: a power of two, 8 or more. */
internal fun headRows(numLabels: Int): Int {
    var rows = FEWEST_HEAD_ROWS
    while (rows < numLabels) rows *= 2
    return rows
}

/** The bias of a row of a head that stands for no label: its probability is 0 in float32. */
internal const val NO_LABEL: Float = -1e4f

private const val FEWEST_HEAD_ROWS = 8

/**
 * The pieces of the model state that an assignment brought, mapped where they lie.
 *
 * @throws ChainFedException.BadBundle when a piece is damaged or holds what the manifest does not know.
 */
internal class ModelState(
    private val manifest: Manifest,
    shards: Map<String, Shard>,
) {
    private val tensors = HashMap<String, TensorView>()

    init {
        val shapes = manifest.stateShapes()
        for ((piece, shard) in shards) {
            for ((name, tensor) in shard.tensors) {
                if (shapes[name] != tensor.shape || tensor.type != TensorType.FLOAT32) {
                    throw ChainFedException.BadBundle(
                        "Piece $piece of the model state: tensor $name is not one of this bundle's; " +
                            "the run's state belongs to another bundle.",
                    )
                }
                tensors[name] = tensor
            }
        }
    }

    /** One tensor as it lies in the model state. */
    fun take(name: String): TensorView =
        tensors[name] ?: throw ChainFedException.BadBundle(
            "The model state lacks $name; it was made for another model.",
        )

    /** One tensor as programs take it: a head gets the rows that stand for no label. */
    fun programTensor(name: String): TensorView {
        val tensor = take(name)
        if (!name.startsWith("heads.")) return tensor
        val filled = TensorView.allocate(listOf(headRows(manifest.numLabels)) + tensor.shape.drop(1), tensor.type)
        val target = filled.floats()
        target.put(tensor.floats())
        val rest = if (tensor.shape.size == 1) NO_LABEL else 0f
        while (target.hasRemaining()) target.put(rest)
        return filled
    }

    /** Mean and reciprocal deviation of the pooled features of [layer], as inputs `{prefix}mean` and `{prefix}rstd`. */
    fun statistics(
        layer: Int,
        prefix: String = "",
    ): Map<String, TensorView> {
        val (mean, rstd) = statisticsNames(layer)
        return mapOf("${prefix}mean" to take(mean), "${prefix}rstd" to take(rstd))
    }

    /** The head at [layer] and its statistics, for the programs `head` and `score`. */
    fun head(layer: Int): Map<String, TensorView> {
        val (weight, bias) = headNames(layer)
        return mapOf("head.weight" to programTensor(weight), "head.bias" to programTensor(bias)) + statistics(layer)
    }

    /** The adapter after [layer], for its block program. */
    fun adapter(layer: Int): Map<String, TensorView> {
        val (down, up) = adapterNames(layer)
        return mapOf("adapter.down" to take(down), "adapter.up" to take(up))
    }
}
