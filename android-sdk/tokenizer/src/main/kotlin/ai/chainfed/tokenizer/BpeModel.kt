package ai.chainfed.tokenizer

/** What a file says of a byte-pair model, apart from its vocabulary and merges. */
internal data class BpeOptions(
    val unknown: String?,
    val prefix: String,
    val suffix: String,
    val fusesUnknown: Boolean,
    val byteFallback: Boolean,
    val ignoresMerges: Boolean,
)

/** Merges of two tokens into one, ranked: the first of the list comes first. */
internal class Merges(
    count: Int,
) {
    private val ranks = PairTable(count)
    private val results = IntList(count)

    fun add(
        left: Int,
        right: Int,
        result: Int,
    ) {
        ranks.put(left, right, results.size)
        results.add(result)
    }

    /** The rank of the pair, or [PairTable.NONE]. */
    fun rank(
        left: Int,
        right: Int,
    ): Int = ranks.get(left, right)

    /** What the merge of this rank makes. */
    fun result(rank: Int): Int = results[rank]
}

/** Byte-pair encoding: a piece's characters, merged two by two in the order of the merges' ranks. */
internal class BpeModel(
    private val vocabulary: Map<String, Int>,
    private val merges: Merges,
    private val options: BpeOptions,
) : Model {
    private val characters = PairTable(vocabulary.size / 16)
    private val bytes = IntArray(256) { vocabulary["<0x%02X>".format(java.util.Locale.ROOT, it)] ?: PairTable.NONE }
    private val plain = options.prefix.isEmpty() && options.suffix.isEmpty()

    init {
        for ((token, id) in vocabulary) {
            if (token.isNotEmpty() && token.length == Character.charCount(token.codePointAt(0))) {
                characters.put(token.codePointAt(0), 0, id)
            }
        }
    }

    override val vocabularySize: Int get() = vocabulary.size

    override fun id(token: String): Int? = vocabulary[token]

    override fun vocabulary(): Map<String, Int> = vocabulary

    override fun tokens(piece: AlignedText): Word {
        if (options.ignoresMerges) vocabulary[piece.string]?.let { return Word.single(it, piece.size) }
        val symbols = MergingSymbols(piece.size)
        fill(symbols, piece)
        symbols.merge(merges)
        return word(symbols, piece)
    }

    private fun fill(
        symbols: MergingSymbols,
        piece: AlignedText,
    ) {
        var unknownId = PairTable.NONE
        var unknownBytes = 0
        for (place in 0 until piece.size) {
            val length = utf8Length(piece[place])
            val id = idOf(piece, place)
            if (id != PairTable.NONE) {
                if (unknownBytes > 0) symbols.add(unknownId, unknownBytes)
                unknownBytes = 0
                symbols.add(id, length)
            } else if (!options.byteFallback || !addBytes(symbols, piece, place)) {
                val unknown = options.unknown ?: continue
                if (unknownBytes > 0 && !options.fusesUnknown) {
                    symbols.add(unknownId, unknownBytes)
                    unknownBytes = 0
                }
                unknownId = vocabulary[unknown] ?: throw missingUnknown()
                unknownBytes += length
            }
        }
        if (unknownBytes > 0) symbols.add(unknownId, unknownBytes)
    }

    private fun idOf(
        piece: AlignedText,
        place: Int,
    ): Int = if (plain) characters.get(piece[place], 0) else vocabulary[marked(piece, place)] ?: PairTable.NONE

    /** A character with the prefix of what continues a word and the suffix of what ends one. */
    private fun marked(
        piece: AlignedText,
        place: Int,
    ): String {
        val character = String(Character.toChars(piece[place]))
        val prefix = if (place > 0) options.prefix else ""
        return prefix + character + if (place == piece.size - 1) options.suffix else ""
    }

    private fun addBytes(
        symbols: MergingSymbols,
        piece: AlignedText,
        place: Int,
    ): Boolean {
        val written = marked(piece, place).toByteArray(Charsets.UTF_8)
        if (written.any { bytes[it.toInt() and 0xFF] == PairTable.NONE }) return false
        for (byte in written) symbols.add(bytes[byte.toInt() and 0xFF], 1)
        return true
    }

    /** The symbols as tokens; bytes within a character stand for all of it. */
    private fun word(
        symbols: MergingSymbols,
        piece: AlignedText,
    ): Word {
        val word = WordBuilder(piece.size)
        var place = 0
        var end = utf8Length(piece[0])
        var byte = 0
        symbols.forEach { id, length ->
            while (byte >= end && place < piece.size - 1) end += utf8Length(piece[++place])
            val first = place
            byte += length
            while (byte > end && place < piece.size - 1) end += utf8Length(piece[++place])
            word.add(id, first, place + 1)
        }
        return word.build()
    }
}

/** The symbols of a piece on their way to tokens: a linked list, and a heap of merges that may be next. */
private class MergingSymbols(
    capacity: Int,
) {
    private val ids = IntList(capacity)
    private val lengths = IntList(capacity)
    private var next = IntArray(0)
    private var previous = IntArray(0)
    private var heap = LongArray(0)
    private var waiting = 0

    fun add(
        id: Int,
        bytes: Int,
    ) {
        ids.add(id)
        lengths.add(bytes)
    }

    /** Merges all that can be merged, lower ranks first and, at the same rank, from the left. */
    fun merge(merges: Merges) {
        val size = ids.size
        next = IntArray(size) { if (it + 1 < size) it + 1 else -1 }
        previous = IntArray(size) { it - 1 }
        heap = LongArray(maxOf(4, size))
        for (place in 0 until size - 1) offer(merges, place)
        while (waiting > 0) {
            val top = pop()
            val place = top.toInt()
            val right = next[place]
            if (lengths[place] == 0 || right < 0) continue
            val rank = merges.rank(ids[place], ids[right])
            val result = merges.result((top ushr 32).toInt())
            // What was offered may have been merged with something else since.
            if (rank == PairTable.NONE || merges.result(rank) != result) continue
            ids[place] = result
            lengths[place] = lengths[place] + lengths[right]
            lengths[right] = 0
            next[place] = next[right]
            if (next[place] >= 0) previous[next[place]] = place
            if (previous[place] >= 0) offer(merges, previous[place])
            if (next[place] >= 0) offer(merges, place)
        }
    }

    inline fun forEach(action: (id: Int, bytes: Int) -> Unit) {
        for (place in 0 until ids.size) if (lengths[place] > 0) action(ids[place], lengths[place])
    }

    private fun offer(
        merges: Merges,
        place: Int,
    ) {
        val rank = merges.rank(ids[place], ids[next[place]])
        if (rank != PairTable.NONE) push((rank.toLong() shl 32) or place.toLong())
    }

    private fun push(entry: Long) {
        if (waiting == heap.size) heap = heap.copyOf(waiting * 2)
        var at = waiting++
        while (at > 0 && heap[(at - 1) / 2] > entry) {
            heap[at] = heap[(at - 1) / 2]
            at = (at - 1) / 2
        }
        heap[at] = entry
    }

    private fun pop(): Long {
        val top = heap[0]
        val last = heap[--waiting]
        var at = 0
        while (true) {
            var child = 2 * at + 1
            if (child >= waiting) break
            if (child + 1 < waiting && heap[child + 1] < heap[child]) child++
            if (heap[child] >= last) break
            heap[at] = heap[child]
            at = child
        }
        heap[at] = last
        return top
    }
}
