package ai.chainfed.tokenizer

/**
 * A map from two integers that are not negative to one, in two flat arrays: a boxed map of a large vocabulary's merges
 * would take several times the memory.
 */
internal class PairTable(
    expected: Int,
) {
    private var keys: LongArray
    private var values: IntArray
    private var size = 0

    init {
        var capacity = 16
        while (capacity * 7L <= expected * 10L) capacity *= 2
        keys = LongArray(capacity) { FREE }
        values = IntArray(capacity)
    }

    /** The value of the pair, or [NONE]. */
    fun get(
        first: Int,
        second: Int,
    ): Int {
        val slot = slot(keys, key(first, second))
        return if (keys[slot] == FREE) NONE else values[slot]
    }

    fun put(
        first: Int,
        second: Int,
        value: Int,
    ) {
        if (size * 10L >= keys.size * 7L) grow()
        val key = key(first, second)
        val slot = slot(keys, key)
        if (keys[slot] == FREE) size++
        keys[slot] = key
        values[slot] = value
    }

    private fun grow() {
        val oldKeys = keys
        val oldValues = values
        keys = LongArray(oldKeys.size * 2) { FREE }
        values = IntArray(oldKeys.size * 2)
        for (index in oldKeys.indices) {
            if (oldKeys[index] == FREE) continue
            val slot = slot(keys, oldKeys[index])
            keys[slot] = oldKeys[index]
            values[slot] = oldValues[index]
        }
    }

    private fun key(
        first: Int,
        second: Int,
    ): Long = (first.toLong() shl 32) or second.toLong()

    private fun slot(
        keys: LongArray,
        key: Long,
    ): Int {
        val mixed = key * -0x61c8864680b583ebL
        var slot = (mixed ushr 32).toInt() and (keys.size - 1)
        while (keys[slot] != FREE && keys[slot] != key) slot = (slot + 1) and (keys.size - 1)
        return slot
    }

    companion object {
        /** What no pair has as its value. */
        const val NONE: Int = -1
        private const val FREE = -1L
    }
}
