package ai.chainfed.tokenizer

/** What makes tokens of a piece of text. */
internal interface Model {
    /** How many tokens the vocabulary has. */
    val vocabularySize: Int

    /** The id of exactly this token, or null. */
    fun id(token: String): Int?

    /** The tokens of the vocabulary that the model can give, by id. */
    fun vocabulary(): Map<String, Int>

    /**
     * The tokens of [piece], which is not empty.
     *
     * Throws [TokenizerException] when it has none and the vocabulary has no token for the unknown.
     */
    fun tokens(piece: AlignedText): Word
}

/**
 * Tokens of a piece of text.
 *
 * Token `i` is `ids[i]` and stands for the piece's characters `starts[i]` until `ends[i]`, in code points.
 */
internal class Word(
    val ids: IntArray,
    val starts: IntArray,
    val ends: IntArray,
) {
    companion object {
        /** One token for a whole piece of [size] characters. */
        fun single(
            id: Int,
            size: Int,
        ): Word = Word(intArrayOf(id), intArrayOf(0), intArrayOf(size))
    }
}

/** Gathers the tokens of a [Word]. */
internal class WordBuilder(
    capacity: Int = 8,
) {
    private val ids = IntList(capacity)
    private val starts = IntList(capacity)
    private val ends = IntList(capacity)

    fun add(
        id: Int,
        start: Int,
        end: Int,
    ) {
        ids.add(id)
        starts.add(start)
        ends.add(end)
    }

    fun build(): Word = Word(ids.toArray(), starts.toArray(), ends.toArray())
}

/** The words of a model that it has split before; it stops growing at [LIMIT] words, so that it stays small. */
internal class CachedModel(
    private val model: Model,
) : Model by model {
    private val words = java.util.concurrent.ConcurrentHashMap<String, Word>()
    private val count =
        java.util.concurrent.atomic
            .AtomicInteger()

    override fun tokens(piece: AlignedText): Word {
        if (piece.size > LONGEST) return model.tokens(piece)
        words[piece.string]?.let { return it }
        val word = model.tokens(piece)
        if (count.get() < LIMIT && words.put(piece.string, word) == null) count.incrementAndGet()
        return word
    }

    private companion object {
        const val LONGEST = 64
        const val LIMIT = 10_000
    }
}

/** A model whose tokens are whole pieces. */
internal class WordLevelModel(
    private val vocabulary: Map<String, Int>,
    private val unknown: String,
) : Model {
    override val vocabularySize: Int get() = vocabulary.size

    override fun id(token: String): Int? = vocabulary[token]

    override fun vocabulary(): Map<String, Int> = vocabulary

    override fun tokens(piece: AlignedText): Word {
        val id = vocabulary[piece.string] ?: vocabulary[unknown] ?: throw missingUnknown()
        return Word.single(id, piece.size)
    }
}

/** A model that takes the longest token of its vocabulary from the front of a piece, again and again. */
internal class WordPieceModel(
    private val vocabulary: Map<String, Int>,
    private val unknown: String,
    private val prefix: String,
    private val longestWord: Int,
) : Model {
    private val longestToken = vocabulary.keys.maxOfOrNull { it.length } ?: 0

    override val vocabularySize: Int get() = vocabulary.size

    override fun id(token: String): Int? = vocabulary[token]

    override fun vocabulary(): Map<String, Int> = vocabulary

    override fun tokens(piece: AlignedText): Word =
        (if (piece.size > longestWord) null else parts(piece))
            ?: Word.single(vocabulary[unknown] ?: throw missingUnknown(), piece.size)

    private fun parts(piece: AlignedText): Word? {
        val text = piece.string
        val word = WordBuilder()
        var place = 0
        var unit = 0
        while (unit < text.length) {
            val rest = if (unit == 0) text else prefix + text.substring(unit, minOf(text.length, unit + longestToken))
            var end = minOf(rest.length, longestToken)
            val shortest = if (unit == 0) 0 else prefix.length
            while (end > shortest && rest.substring(0, end) !in vocabulary) {
                end -= Character.charCount(rest.codePointBefore(end))
            }
            if (end <= shortest) return null
            val units = end - shortest
            val places = text.codePointCount(unit, unit + units)
            word.add(vocabulary.getValue(rest.substring(0, end)), place, place + places)
            place += places
            unit += units
        }
        return word.build()
    }
}

internal fun missingUnknown(): TokenizerException =
    TokenizerException.unencodable("it holds what the vocabulary lacks, and that has no token for the unknown")
