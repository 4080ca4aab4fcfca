package ai.chainfed.tokenizer

/** A token beside the model's vocabulary that is found in a text before the model sees it. */
internal data class AddedToken(
    val content: String,
    val singleWord: Boolean,
    val stripsLeft: Boolean,
    val stripsRight: Boolean,
    val normalized: Boolean,
    val special: Boolean,
)

/** A piece of a text, and the id of the added token that it is, if it is one. */
internal class AddedPiece(
    val text: AlignedText,
    val id: Int?,
)

/** The added tokens of a tokenizer: those found in the text as it is, and those found in the normalised text. */
internal class AddedTokens(
    tokens: Map<Int, AddedToken>,
    private val normalizer: Normalizer?,
) {
    private val plain = TokenTrie()
    private val normalized = TokenTrie()

    init {
        for ((id, token) in tokens) {
            if (!token.normalized) {
                plain.add(AlignedText.of(token.content), id, token)
            } else {
                normalized.add(normalize(AlignedText.of(token.content)), id, token)
            }
        }
    }

    /** The pieces of [text] in order, those that are no added token normalised; empty ones are left out. */
    fun pieces(text: AlignedText): List<AddedPiece> {
        val pieces = ArrayList<AddedPiece>()
        for (piece in plain.cut(text)) {
            if (piece.id != null) pieces.add(piece) else pieces.addAll(normalized.cut(normalize(piece.text)))
        }
        return pieces
    }

    private fun normalize(text: AlignedText): AlignedText = normalizer?.normalize(text) ?: text
}

/** Tokens by their characters; in a text the leftmost is found, and of those the longest. */
private class TokenTrie {
    private class Node {
        val next = HashMap<Int, Node>()
        var id: Int? = null
        var token: AddedToken? = null
    }

    private val root = Node()

    fun add(
        text: AlignedText,
        id: Int,
        token: AddedToken,
    ) {
        if (text.size == 0) throw TokenizerException.damaged("the normalizer leaves nothing of an added token")
        var node = root
        for (place in 0 until text.size) node = node.next.getOrPut(text[place]) { Node() }
        if (node.id != null) throw TokenizerException.damaged("two added tokens are the same in a text")
        node.id = id
        node.token = token
    }

    fun cut(text: AlignedText): List<AddedPiece> {
        if (text.size == 0) return emptyList()
        if (root.next.isEmpty()) return listOf(AddedPiece(text, null))
        val pieces = ArrayList<AddedPiece>()
        var done = 0
        var at = 0
        while (at < text.size) {
            val found = longest(text, at)
            if (found != null && (!found.token.singleWord || isApart(text, at, found.end))) {
                val start = startOf(found, text, at, done)
                val stop = if (found.token.stripsRight) behindSpaces(text, found.end) else found.end
                if (done < start) pieces.add(AddedPiece(text.slice(done, start), null))
                // The token before may have taken all of this one with the spaces behind it.
                if (start < stop) {
                    pieces.add(AddedPiece(text.slice(start, stop), found.id))
                    done = stop
                }
            }
            at = found?.end ?: (at + 1)
        }
        if (done < text.size) pieces.add(AddedPiece(text.slice(done, text.size), null))
        return pieces
    }

    private class Found(
        val token: AddedToken,
        val id: Int?,
        val end: Int,
    )

    /** The longest added token that begins at [start]. */
    private fun longest(
        text: AlignedText,
        start: Int,
    ): Found? {
        var found: Found? = null
        var node: Node? = root
        var place = start
        while (node != null) {
            node.token?.let { found = Found(it, node.id, place) }
            node = if (place < text.size) node.next[text[place]] else null
            place++
        }
        return found
    }

    private fun startOf(
        found: Found,
        text: AlignedText,
        at: Int,
        done: Int,
    ): Int = if (found.token.stripsLeft) maxOf(done, beforeSpaces(text, at)) else at

    private fun isApart(
        text: AlignedText,
        start: Int,
        end: Int,
    ): Boolean = (start == 0 || !isWord(text[start - 1])) && (end == text.size || !isWord(text[end]))

    private fun beforeSpaces(
        text: AlignedText,
        start: Int,
    ): Int {
        var place = start
        while (place > 0 && isWhitespace(text[place - 1])) place--
        return place
    }

    private fun behindSpaces(
        text: AlignedText,
        end: Int,
    ): Int {
        var place = end
        while (place < text.size && isWhitespace(text[place])) place++
        return place
    }
}
