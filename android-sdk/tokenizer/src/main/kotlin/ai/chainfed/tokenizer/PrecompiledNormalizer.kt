package ai.chainfed.tokenizer

import java.util.regex.Pattern

/**
 * SentencePiece's own normalisation rules, as its models carry them.
 *
 * [charsMap] is the length of a double-array trie in bytes (an unsigned little-endian integer), the trie's units (the
 * same), and then the replacements as UTF-8, each ended by a zero byte. The trie maps UTF-8 to places among them.
 */
internal class PrecompiledNormalizer(
    charsMap: ByteArray,
) : Normalizer {
    private val units: IntArray
    private val replacements: ByteArray

    init {
        val bytes = if (charsMap.size >= 4) little(charsMap, 0).toLong() and 0xFFFFFFFFL else -1
        if (bytes < 4 ||
            bytes > charsMap.size - 4
        ) {
            throw TokenizerException.damaged("its precompiled_charsmap is cut off")
        }
        units = IntArray((bytes / 4).toInt()) { little(charsMap, 4 + 4 * it) }
        replacements = charsMap.copyOfRange(4 + units.size * 4, charsMap.size)
    }

    override fun normalize(text: AlignedText): AlignedText {
        val changes = Changes(text.size)
        val graphemes = Graphemes(text)
        var modified = false
        var at = 0
        while (at < text.size) {
            val end = graphemes.end(at)
            if (bytes(text, at, end) < 6 && replace(text, at, end, changes)) {
                modified = true
            } else {
                for (place in at until end) {
                    if (replace(text, place, place + 1, changes)) modified = true else changes.add(text[place], 0)
                }
            }
            at = end
        }
        return if (modified) text.transformed(changes) else text
    }

    /** Adds what the characters [first] until [last] become, if a rule begins with them; says whether one does. */
    private fun replace(
        text: AlignedText,
        first: Int,
        last: Int,
        changes: Changes,
    ): Boolean {
        val replacement = codePoints(replacement(text, first, last) ?: return false)
        val more = replacement.size - (last - first)
        for (index in replacement.indices) {
            changes.add(replacement[index], if (index >= replacement.size - more) 1 else 0)
        }
        val end = changes.size - 1
        if (more < 0 && end >= 0) changes.setChange(end, changes.change(end) + more)
        return true
    }

    /** The replacement of the shortest rule that the characters begin with. */
    private fun replacement(
        text: AlignedText,
        first: Int,
        last: Int,
    ): String? {
        var node = offset(units[0])
        for (place in first until last) {
            val point = text[place]
            for (index in 0 until utf8Length(point)) {
                val byte = utf8Byte(point, index)
                node = node xor byte
                if (byte == 0 || node >= units.size || units[node] and LABEL_MASK != byte) return null
                val unit = units[node]
                node = node xor offset(unit)
                if (unit and HAS_LEAF !=
                    0
                ) {
                    return if (node < units.size) replacementAt(units[node] and VALUE_MASK) else null
                }
            }
        }
        return null
    }

    private fun replacementAt(start: Int): String? {
        if (start > replacements.size) return null
        var end = start
        while (end < replacements.size && replacements[end] != 0.toByte()) end++
        return String(replacements, start, end - start, Charsets.UTF_8)
    }

    private fun offset(unit: Int): Int = (unit ushr 10) shl ((unit and (1 shl 9)) ushr 6)

    private fun bytes(
        text: AlignedText,
        first: Int,
        last: Int,
    ): Int = (first until last).sumOf { utf8Length(text[it]) }

    private fun little(
        data: ByteArray,
        at: Int,
    ): Int = (0..3).fold(0) { value, byte -> value or ((data[at + byte].toInt() and 0xFF) shl (8 * byte)) }

    private companion object {
        const val HAS_LEAF = 1 shl 8
        const val VALUE_MASK = (1 shl 31) - 1
        const val LABEL_MASK = (1 shl 31) or 0xFF
    }
}

/** Where the graphemes of a text end, asked for from its beginning to its end. */
private class Graphemes(
    private val text: AlignedText,
) {
    private val string = text.string
    private val matcher = GRAPHEME.matcher(string)
    private var place = 0
    private var unit = 0

    /** The end of the grapheme that begins at [start]. */
    fun end(start: Int): Int {
        while (place < start) unit += Character.charCount(text[place++])
        if (start + 1 == text.size) return text.size
        val point = text[start]
        val next = text[start + 1]
        // No character before U+0300 joins the one before it, but for a line feed behind a carriage return.
        if (point < 0x300 && next < 0x300) return start + if (point == 0x0D && next == 0x0A) 2 else 1
        matcher.region(unit, string.length)
        return start + if (matcher.lookingAt()) string.codePointCount(unit, matcher.end()) else 1
    }

    private companion object {
        val GRAPHEME: Pattern = Pattern.compile("\\X")
    }
}
