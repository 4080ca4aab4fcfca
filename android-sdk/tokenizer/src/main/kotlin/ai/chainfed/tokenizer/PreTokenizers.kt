package ai.chainfed.tokenizer

/** A step that cuts a text into pieces, which a model then takes one by one. */
internal fun interface PreTokenizer {
    /** Adds the pieces of [text], which is not empty, to [pieces]; none of them is empty. */
    fun cut(
        text: AlignedText,
        pieces: MutableList<AlignedText>,
    )
}

/** One step after the other, each on the pieces of the one before. */
internal class PreTokenizerSequence(
    private val steps: List<PreTokenizer>,
) : PreTokenizer {
    override fun cut(
        text: AlignedText,
        pieces: MutableList<AlignedText>,
    ) {
        var current: List<AlignedText> = listOf(text)
        for (step in steps) {
            val next = ArrayList<AlignedText>()
            for (piece in current) step.cut(piece, next)
            current = next
        }
        pieces.addAll(current)
    }
}

/** Cuts at what [pattern] finds. */
internal class Split(
    private val pattern: TextPattern,
    private val behavior: SplitBehavior,
) : PreTokenizer {
    override fun cut(
        text: AlignedText,
        pieces: MutableList<AlignedText>,
    ) {
        split(text, pattern.find(text), behavior, pieces)
    }

    companion object {
        /** Words between white space. */
        fun whitespace(): Split = Split(CharacterPattern(::isWhitespace), SplitBehavior.REMOVED)

        /** Runs of word characters, and runs of others, between white space. */
        fun words(): Split {
            val kind = { point: Int ->
                if (isWord(point)) {
                    1
                } else if (isWhitespace(point)) {
                    0
                } else {
                    2
                }
            }
            return Split(InvertedPattern(RunPattern(kind)), SplitBehavior.REMOVED)
        }

        fun punctuation(behavior: SplitBehavior): Split = Split(CharacterPattern(::isPunctuation), behavior)

        /** Numbers apart from the rest, digit by digit or as wholes. */
        fun digits(individual: Boolean): Split {
            val behavior = if (individual) SplitBehavior.ISOLATED else SplitBehavior.CONTIGUOUS
            return Split(CharacterPattern(::isNumeric), behavior)
        }

        /** Words between white space, each punctuation mark by itself. */
        fun bert(): PreTokenizer = PreTokenizerSequence(listOf(whitespace(), punctuation(SplitBehavior.ISOLATED)))
    }
}

/** Where SentencePiece writes a space before a text. */
internal enum class PrependScheme(
    val word: String,
) {
    ALWAYS("always"),
    FIRST("first"),
    NEVER("never"),
}

/** SentencePiece's way with spaces: each becomes [replacement], which begins a word. */
internal class Metaspace(
    private val replacement: Int,
    private val scheme: PrependScheme,
    private val splits: Boolean,
) : PreTokenizer {
    private val content = intArrayOf(replacement)
    private val spaces = CharacterPattern { it == ' '.code }
    private val marks = CharacterPattern { it == replacement }

    override fun cut(
        text: AlignedText,
        pieces: MutableList<AlignedText>,
    ) {
        var marked = if (text.count { it == ' '.code } == 0) text else text.replaced(spaces.find(text), content)
        val prepends =
            when (scheme) {
                PrependScheme.ALWAYS -> true
                PrependScheme.FIRST -> text.shift == 0
                PrependScheme.NEVER -> false
            }
        if (prepends && marked[0] != replacement) marked = marked.prepended(content)
        if (splits) {
            split(marked, marks.find(marked), SplitBehavior.MERGED_WITH_NEXT, pieces)
        } else {
            pieces.add(marked)
        }
    }
}
