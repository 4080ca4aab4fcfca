package ai.chainfed.tokenizer

import java.io.File
import java.io.IOException

/**
 * The tokens of a text.
 *
 * ids: token ids. offsets: for token `i` the characters of the text that it stands for, from `offsets[2 * i]` until
 * `offsets[2 * i + 1]`, counted in code points; both are 0 for a token that was added.
 */
public class Encoding internal constructor(
    public val ids: IntArray,
    public val offsets: IntArray,
) {
    /** How many tokens there are. */
    public val size: Int get() = ids.size

    /** The first character of token [index]. */
    public fun start(index: Int): Int = offsets[2 * index]

    /** The character behind the last one of token [index]. */
    public fun end(index: Int): Int = offsets[2 * index + 1]
}

/**
 * Texts to token ids, as a Hugging Face `tokenizer.json` says and as the library `tokenizers` does it.
 *
 * The file's own settings for cutting and padding are ignored. Any number of threads may use one tokenizer.
 */
public class Tokenizer internal constructor(
    private val addedTokens: AddedTokens,
    private val preTokenizer: PreTokenizer?,
    private val model: Model,
    private val postProcessor: PostProcessor?,
    spaces: Map<Int, Int>,
) {
    // By id, for tokens whose places are trimmed; empty when none are.
    private val spaces =
        IntArray(
            (spaces.keys.maxOrNull() ?: -1) + 1,
        ).also { for ((id, count) in spaces) it[id] = count }

    /** How many special tokens are added to a text. */
    public val specialTokenCount: Int get() = postProcessor?.added ?: 0

    /**
     * The tokens of [text], with the special tokens around it unless [addSpecialTokens] is false.
     *
     * With a [maxLength], so many tokens at most, special ones counted: those of the text's end are left out. Throws
     * [TokenizerException] when the text has no tokens in this vocabulary or holds half a surrogate pair, and
     * IllegalArgumentException when not even the special tokens fit in [maxLength].
     */
    @Throws(TokenizerException::class)
    public fun encode(
        text: String,
        addSpecialTokens: Boolean = true,
        maxLength: Int = Int.MAX_VALUE,
    ): Encoding {
        val most = maxLength - if (addSpecialTokens) specialTokenCount else 0
        require(most >= 0) { "at most $maxLength tokens leave no room for $specialTokenCount special ones" }
        val tokens = listOf(tokens(AlignedText.of(text), most).first(most))
        val parts = postProcessor?.process(tokens, addSpecialTokens) ?: tokens
        val encoding = Encoding(IntArray(parts.sumOf { it.size }), IntArray(2 * parts.sumOf { it.size }))
        var at = 0
        for (part in parts) {
            for (index in 0 until part.size) {
                encoding.ids[at] = part.id(index)
                encoding.offsets[2 * at] = part.start(index)
                encoding.offsets[2 * at++ + 1] = part.end(index)
            }
        }
        return encoding
    }

    /** The tokens of a text; once there are [enough], no more are looked for. */
    private fun tokens(
        text: AlignedText,
        enough: Int,
    ): TokenList {
        for (place in 0 until text.size) {
            if (text[place] in 0xD800..0xDFFF) throw TokenizerException.unencodable("it holds half a surrogate pair")
        }
        val tokens = TokenList()
        for (piece in addedTokens.pieces(text)) {
            if (tokens.size >= enough) break
            if (piece.id != null) {
                val last = piece.text.size - 1
                val edges = if (spaces.isEmpty()) 0 else Spaces.of(piece.text.string)
                tokens.add(piece.id, piece.text.start(0), piece.text.end(last), edges)
            } else {
                addTokens(piece.text, tokens, enough)
            }
        }
        return tokens
    }

    private fun addTokens(
        text: AlignedText,
        tokens: TokenList,
        enough: Int,
    ) {
        val pieces = ArrayList<AlignedText>()
        if (preTokenizer == null) pieces.add(text) else preTokenizer.cut(text, pieces)
        for (piece in pieces) {
            if (tokens.size >= enough) return
            val word = model.tokens(piece)
            for (index in word.ids.indices) {
                val id = word.ids[index]
                val edges = if (id < spaces.size) spaces[id] else 0
                tokens.add(id, piece.start(word.starts[index]), piece.end(word.ends[index] - 1), edges)
            }
        }
    }

    public companion object {
        /** The tokenizer that the bytes of a `tokenizer.json` describe. */
        @Throws(TokenizerException::class)
        public fun read(data: ByteArray): Tokenizer = TokenizerFile.read(data)

        /** The tokenizer of a `tokenizer.json`; throws [TokenizerException] too when the file cannot be opened. */
        @Throws(TokenizerException::class)
        public fun read(file: File): Tokenizer {
            val data =
                try {
                    file.readBytes()
                } catch (error: IOException) {
                    throw TokenizerException.damaged("${file.name} cannot be opened", error)
                }
            return read(data)
        }
    }
}
