package ai.chainfed.tokenizer

/** A token of a unigram model's vocabulary and the logarithm of its probability. */
internal class ScoredToken(
    val token: String,
    val score: Double,
)

/** A unigram language model over pieces of words: the most probable way to cut a text, by the Viterbi algorithm. */
internal class UnigramModel(
    private val tokens: List<ScoredToken>,
    private val unknown: Int?,
    private val byteFallback: Boolean,
) : Model {
    private val ids = HashMap<String, Int>(tokens.size * 2)
    private val scores = DoubleArray(tokens.size) { tokens[it].score }
    private val unknownScore = (scores.minOrNull() ?: 0.0) - UNKNOWN_PENALTY

    // A trie: from a node and a character to the next node, and from a node to the token that ends there.
    private val nodes = PairTable(tokens.size * 2)
    private val tokenOfNode = IntList(tokens.size * 2)

    init {
        tokenOfNode.add(PairTable.NONE)
        tokens.forEachIndexed { id, token ->
            ids[token.token] = id
            var node = 0
            for (point in codePoints(token.token)) node = nodeBehind(node, point)
            if (node > 0) tokenOfNode[node] = id
        }
    }

    override val vocabularySize: Int get() = tokens.size

    override fun id(token: String): Int? = ids[token]

    override fun vocabulary(): Map<String, Int> = ids

    override fun tokens(piece: AlignedText): Word {
        val path = Path(piece.size)
        for (start in 0 until piece.size) step(piece, start, path)
        return word(piece, path)
    }

    private fun nodeBehind(
        node: Int,
        point: Int,
    ): Int {
        val known = nodes.get(node, point)
        if (known != PairTable.NONE) return known
        val added = tokenOfNode.size
        tokenOfNode.add(PairTable.NONE)
        nodes.put(node, point, added)
        return added
    }

    /** Tries every token that begins at [start]. */
    private fun step(
        piece: AlignedText,
        start: Int,
        path: Path,
    ) {
        var node = 0
        var single = false
        for (place in start until piece.size) {
            node = nodes.get(node, piece[place])
            if (node == PairTable.NONE) break
            val id = tokenOfNode[node]
            if (id == PairTable.NONE) continue
            path.offer(start, place + 1, id, scores[id])
            if (place == start) single = true
        }
        if (!single) path.offer(start, start + 1, unknown ?: throw missingUnknown(), unknownScore)
    }

    private fun word(
        piece: AlignedText,
        path: Path,
    ): Word {
        val ends = IntList()
        var end = piece.size
        while (end > 0) {
            ends.add(end)
            end = path.start(end)
        }
        val word = WordBuilder(ends.size)
        var index = ends.size - 1
        while (index >= 0) {
            val start = path.start(ends[index])
            // The unknown in a row is one token.
            if (path.id(ends[index]) == unknown) while (index > 0 && path.id(ends[index - 1]) == unknown) index--
            add(word, piece, start, ends[index])
            index--
        }
        return word.build()
    }

    private fun add(
        word: WordBuilder,
        piece: AlignedText,
        start: Int,
        end: Int,
    ) {
        val text = piece.slice(start, end).string
        val id = ids[text]
        val bytes = if (id == null && byteFallback) bytesOf(text) else null
        if (bytes != null) {
            for (byte in bytes) word.add(byte, start, end)
        } else {
            word.add(id ?: unknown ?: throw missingUnknown(), start, end)
        }
    }

    private fun bytesOf(text: String): List<Int>? {
        val found = text.toByteArray(Charsets.UTF_8).map { ids["<0x%02X>".format(java.util.Locale.ROOT, it)] }
        return if (null in found) null else found.filterNotNull()
    }

    /** The best way to each place of a piece: the token that ends there and where it begins. */
    private class Path(
        size: Int,
    ) {
        private val scores = DoubleArray(size + 1)
        private val starts = IntArray(size + 1) { PairTable.NONE }
        private val ids = IntArray(size + 1)

        fun start(end: Int): Int = starts[end]

        fun id(end: Int): Int = ids[end]

        fun offer(
            start: Int,
            end: Int,
            id: Int,
            score: Double,
        ) {
            val total = score + scores[start]
            if (starts[end] != PairTable.NONE && total <= scores[end]) return
            scores[end] = total
            starts[end] = start
            ids[end] = id
        }
    }

    private companion object {
        const val UNKNOWN_PENALTY = 10.0
    }
}
