package ai.chainfed.tokenizer

/** GPT-2's byte-level alphabet: every byte has a printable character of its own. */
internal object ByteAlphabet {
    /** The character of each byte. */
    private val characters = IntArray(256)

    /** What a space becomes. */
    val space: Int

    init {
        var others = 0
        for (byte in 0..255) {
            val printable = byte in 0x21..0x7E || byte in 0xA1..0xAC || byte in 0xAE..0xFF
            characters[byte] = if (printable) byte else 256 + others++
        }
        space = characters[0x20]
    }

    /** The text with every byte of its UTF-8 as a character of the alphabet. */
    fun written(text: AlignedText): AlignedText {
        val building = AlignedTextBuilder(text.size * 2)
        for (place in 0 until text.size) {
            val point = text[place]
            for (index in 0 until utf8Length(point)) {
                building.add(characters[utf8Byte(point, index)], text.start(place), text.end(place))
            }
        }
        return building.build(text.shift)
    }
}

/** GPT-2's pre-tokenizer: words with the space before them, then bytes as characters. */
internal class ByteLevelPreTokenizer(
    private val addsSpace: Boolean,
    private val splits: Boolean,
) : PreTokenizer {
    override fun cut(
        text: AlignedText,
        pieces: MutableList<AlignedText>,
    ) {
        val spaced = if (addsSpace && text[0] != ' '.code) text.prepended(SPACE) else text
        if (!splits) {
            pieces.add(ByteAlphabet.written(spaced))
            return
        }
        val words = ArrayList<AlignedText>()
        split(spaced, WORDS.find(spaced), SplitBehavior.ISOLATED, words)
        for (word in words) pieces.add(ByteAlphabet.written(word))
    }

    private companion object {
        val SPACE = intArrayOf(' '.code)
        val WORDS =
            RegexPattern.oniguruma(
                "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
            )
    }
}
