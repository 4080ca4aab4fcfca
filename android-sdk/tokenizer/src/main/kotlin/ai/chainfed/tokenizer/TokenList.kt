package ai.chainfed.tokenizer

/** Tokens one after the other: id, the original's characters it stands for, and its spaces; see [Spaces]. */
internal class TokenList(
    capacity: Int = 64,
) {
    private val ids = IntList(capacity)
    private val starts = IntList(capacity)
    private val ends = IntList(capacity)
    private val spaces = IntList(capacity)

    val size: Int get() = ids.size

    fun add(
        id: Int,
        start: Int,
        end: Int,
        spaces: Int,
    ) {
        ids.add(id)
        starts.add(start)
        ends.add(end)
        this.spaces.add(spaces)
    }

    fun id(index: Int): Int = ids[index]

    fun start(index: Int): Int = starts[index]

    fun end(index: Int): Int = ends[index]

    fun leadingSpaces(index: Int): Int = spaces[index] ushr 16

    fun trailingSpaces(index: Int): Int = spaces[index] and 0xFFFF

    fun setRange(
        index: Int,
        start: Int,
        end: Int,
    ) {
        starts[index] = start
        ends[index] = end
    }

    /** The first [count] tokens, or all when there are no more. */
    fun first(count: Int): TokenList {
        if (count >= size) return this
        val result = TokenList(count)
        for (index in 0 until count) result.add(id(index), start(index), end(index), spaces[index])
        return result
    }
}

/** How many characters at the beginning and at the end of a token are spaces, as one number. */
internal object Spaces {
    private const val MOST = 0xFFFF

    /** The number for the token [text]; GPT-2's character for a space counts as one. */
    fun of(text: String): Int {
        val points = codePoints(text)
        val leading = points.indexOfFirst { !isSpace(it) }.let { if (it < 0) points.size else it }
        val trailing = points.size - 1 - points.indexOfLast { !isSpace(it) }
        return (minOf(leading, MOST) shl 16) or minOf(trailing, MOST)
    }

    private fun isSpace(point: Int): Boolean = point == ByteAlphabet.space || isWhitespace(point)
}
