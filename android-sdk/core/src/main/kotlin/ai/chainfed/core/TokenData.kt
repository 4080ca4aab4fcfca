package ai.chainfed.core

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** The label of a position after which nothing is to be predicted. */
internal const val NO_TARGET: Int = -100

/**
 * Examples as rows of token ids, in the order of their source (`docs/device.md` section 4).
 *
 * [ids]: (rows, seq), row-major. [lengths]: how many tokens each row has; what follows is padding. [labels]: of a
 * classifier one a row, of a language model (rows, seq): the token to predict at each position, or [NO_TARGET].
 */
internal class TokenData(
    val ids: IntArray,
    val lengths: IntArray,
    val labels: IntArray,
    val seqLen: Int,
    val batchSize: Int,
) {
    val numRows: Int get() = lengths.size

    /** Batches, the last of which may be short. */
    val numBatches: Int get() = (numRows + batchSize - 1) / batchSize

    /** Labels of a row: 1, or one a position. */
    val labelsPerRow: Int get() = if (numRows == 0) 0 else labels.size / numRows

    /** Names everything that a device computes from. */
    val fingerprint: String by lazy {
        val digest = sha256()
        digest.update("$numRows $seqLen $batchSize".toByteArray())
        val row = ByteBuffer.allocate(Long.SIZE_BYTES * maxOf(seqLen, labelsPerRow)).order(ByteOrder.LITTLE_ENDIAN)

        fun update(fill: ByteBuffer.() -> Unit) {
            row.clear()
            row.fill()
            digest.update(row.array(), 0, row.position())
        }
        for (index in 0 until numRows) update { for (at in 0 until seqLen) putLong(ids[index * seqLen + at].toLong()) }
        for (length in lengths) update { for (at in 0 until seqLen) putFloat(if (at < length) 1f else 0f) }
        for (index in 0 until numRows) {
            update { for (at in 0 until labelsPerRow) putLong(labels[index * labelsPerRow + at].toLong()) }
        }
        digest.digest().toHex()
    }

    /** How many of the rows of a stored batch are real. */
    fun numReal(batch: Int): Int = minOf(batchSize, numRows - batch * batchSize)

    /** The rows of a stored batch, `batchSize` of them (see [padded]). */
    fun storedBatch(batch: Int): IntArray = padded(realRows(batch), batchSize)

    /** The real rows of a stored batch. */
    fun realRows(batch: Int): IntArray = IntArray(numReal(batch)) { batch * batchSize + it }

    /** Some of the rows, in the order given. */
    fun select(rows: IntArray): TokenData =
        TokenData(
            gather(ids, seqLen, rows),
            gather(lengths, 1, rows),
            gather(labels, labelsPerRow, rows),
            seqLen,
            batchSize,
        )

    /** `input_ids` [rows, seq] int64. */
    fun inputIds(rows: IntArray): TensorView {
        val tensor = TensorView.allocate(listOf(rows.size, seqLen), TensorType.INT64)
        val target = tensor.longs()
        for (row in rows) for (at in 0 until seqLen) target.put(ids[row * seqLen + at].toLong())
        return tensor
    }

    /** `mask` [rows, seq]: 1 on tokens and 0 on padding. */
    fun mask(rows: IntArray): TensorView {
        val tensor = TensorView.allocate(listOf(rows.size, seqLen))
        val target = tensor.floats()
        for (row in rows) for (at in 0 until seqLen) target.put(if (at < lengths[row]) 1f else 0f)
        return tensor
    }

    private fun gather(
        values: IntArray,
        width: Int,
        rows: IntArray,
    ): IntArray {
        val chosen = IntArray(rows.size * width)
        rows.forEachIndexed { place, row -> values.copyInto(chosen, place * width, row * width, (row + 1) * width) }
        return chosen
    }
}

/** [rows] brought to [size] by repeating the first one; the repeated ones have weight 0. */
internal fun padded(
    rows: IntArray,
    size: Int,
): IntArray = IntArray(size) { if (it < rows.size) rows[it] else rows[0] }
