package ai.chainfed.tokenizer

/** A step that adds tokens around those of a text, or corrects their places. */
internal interface PostProcessor {
    /** How many tokens it adds to a text. */
    val added: Int

    /** The parts that follow each other, made of [parts]; the first step gets one. */
    fun process(
        parts: List<TokenList>,
        addSpecialTokens: Boolean,
    ): List<TokenList>
}

/** One step after the other. */
internal class PostProcessorSequence(
    private val steps: List<PostProcessor>,
) : PostProcessor {
    override val added: Int = steps.sumOf { it.added }

    /** Whether [matches] is true of a step. */
    fun any(matches: (PostProcessor) -> Boolean): Boolean = steps.any(matches)

    override fun process(
        parts: List<TokenList>,
        addSpecialTokens: Boolean,
    ): List<TokenList> = steps.fold(parts) { current, step -> step.process(current, addSpecialTokens) }
}

/** A text between special tokens: those of [before] and [behind] its own. */
internal class Surrounding(
    private val before: IntArray,
    private val behind: IntArray,
) : PostProcessor {
    override val added: Int = before.size + behind.size

    override fun process(
        parts: List<TokenList>,
        addSpecialTokens: Boolean,
    ): List<TokenList> = if (addSpecialTokens) listOf(list(before)) + parts + list(behind) else parts

    private fun list(ids: IntArray): TokenList = TokenList(ids.size).also { for (id in ids) it.add(id, 0, 0, 0) }
}

/** Any order of texts and special tokens: a piece is the text where it is null, and otherwise what it adds. */
internal class Template(
    private val pieces: List<IntArray?>,
) : PostProcessor {
    override val added: Int = pieces.sumOf { it?.size ?: 0 }

    override fun process(
        parts: List<TokenList>,
        addSpecialTokens: Boolean,
    ): List<TokenList> {
        val result = ArrayList<TokenList>()
        for (piece in pieces) {
            if (piece == null) {
                result.addAll(parts)
            } else if (addSpecialTokens) {
                result.add(TokenList(piece.size).also { for (id in piece) it.add(id, 0, 0, 0) })
            }
        }
        return result
    }
}

/** The places of byte-level tokens without the spaces at their ends. */
internal class TrimmedOffsets(
    private val addsSpace: Boolean,
) : PostProcessor {
    override val added: Int get() = 0

    override fun process(
        parts: List<TokenList>,
        addSpecialTokens: Boolean,
    ): List<TokenList> {
        for (part in parts) for (index in 0 until part.size) trim(part, index)
        return parts
    }

    private fun trim(
        tokens: TokenList,
        index: Int,
    ) {
        var start = tokens.start(index)
        var end = tokens.end(index)
        val leading = tokens.leadingSpaces(index)
        val trailing = tokens.trailingSpaces(index)
        // A single space before the first token is the one that was added: it is in no original.
        val isAdded = addsSpace && leading == 1 && (index == 0 || start == 0)
        if (!isAdded) start = minOf(start + leading, end)
        if (trailing in 1..end) end = maxOf(end - trailing, start)
        tokens.setRange(index, start, end)
    }
}
