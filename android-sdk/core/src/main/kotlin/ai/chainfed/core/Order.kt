package ai.chainfed.core

import java.security.MessageDigest

/** SplitMix64 as `docs/device.md` section 4 has it: uniform 64-bit integers from a seed. */
internal class SplitMix64(
    seed: Long,
) {
    private var state = seed

    /** The next integer; its bits are an unsigned number. */
    fun next(): Long {
        state += -0x61c8864680b583ebL
        var z = state
        z = (z xor (z ushr 30)) * -0x40a7b892e31b1a47L
        z = (z xor (z ushr 27)) * -0x6b2fb644ecceee15L
        return z xor (z ushr 31)
    }

    /** A uniform integer from 0 to [bound] - 1. */
    fun below(bound: Int): Int {
        require(bound >= 1) { "bound $bound is not positive" }
        if (bound == 1) return 0
        val bits = Int.SIZE_BITS - Integer.numberOfLeadingZeros(bound - 1)
        while (true) {
            val draw = next() ushr (Long.SIZE_BITS - bits)
            if (draw < bound) return draw.toInt()
        }
    }
}

/** A uniform permutation of 0 to [count] - 1: Fisher and Yates, from the last position down to 1. */
internal fun permutation(
    count: Int,
    generator: SplitMix64,
): IntArray {
    val order = IntArray(count) { it }
    for (last in count - 1 downTo 1) {
        val other = generator.below(last + 1)
        order[last] = order[other].also { order[other] = order[last] }
    }
    return order
}

/** The rows of every training step: a permutation an epoch from one generator, cut into batches. */
internal fun trainingSteps(
    numRows: Int,
    batchSize: Int,
    epochs: Int,
    seed: Long,
): List<IntArray> {
    val generator = SplitMix64(seed)
    return (0 until epochs).flatMap {
        val order = permutation(numRows, generator)
        (0 until numRows step batchSize).map { start ->
            order.copyOfRange(start, minOf(start + batchSize, numRows))
        }
    }
}

internal fun sha256(): MessageDigest = MessageDigest.getInstance("SHA-256")

internal fun ByteArray.toHex(): String {
    val digits = StringBuilder(2 * size)
    for (byte in this) {
        digits.append(HEX[byte.toInt() shr 4 and 15]).append(HEX[byte.toInt() and 15])
    }
    return digits.toString()
}

private const val HEX = "0123456789abcdef"
