package ai.chainfed.tokenizer

import java.util.regex.Pattern

/**
 * A regular expression of a tokenizer file, which is written for Oniguruma, on java.util.regex.
 *
 * Only what means the same in Java's and Android's engines is handed on; `\s` and `\d` become explicit classes, and
 * ignoring case becomes a choice of letters.
 */
internal class RegexPattern(
    private val compiled: Pattern,
) : TextPattern {
    override fun find(text: AlignedText): Matches {
        val found = Matches()
        val string = text.string
        val places = if (string.length == text.size) null else placesOfUnits(text, string.length)
        val matcher = compiled.matcher(string)
        var last = 0
        while (matcher.find()) {
            val start = place(places, matcher.start())
            val end = place(places, matcher.end())
            // An empty match right behind another, or between the halves of a pair, is none.
            if (matcher.start() == matcher.end() && (found.endsAt(end) || isHalf(string, matcher.start()))) continue
            if (last < start) found.add(last, start, false)
            found.add(start, end, true)
            last = end
        }
        if (last < text.size) found.add(last, text.size, false)
        return found
    }

    private fun Matches.endsAt(place: Int): Boolean = size > 0 && isMatch(size - 1) && end(size - 1) == place

    private fun isHalf(
        string: String,
        unit: Int,
    ): Boolean = unit < string.length && string[unit].isLowSurrogate()

    private fun place(
        places: IntArray?,
        unit: Int,
    ): Int = if (places == null) unit else places[unit]

    private fun placesOfUnits(
        text: AlignedText,
        units: Int,
    ): IntArray {
        val places = IntArray(units + 1)
        var unit = 0
        for (place in 0 until text.size) repeat(Character.charCount(text[place])) { places[unit++] = place }
        places[unit] = text.size
        return places
    }

    companion object {
        /** Where exactly [text] stands. */
        fun literal(text: String): RegexPattern = RegexPattern(Pattern.compile(Pattern.quote(text)))

        /** An Oniguruma expression; throws [TokenizerException] when it holds what cannot be translated. */
        fun oniguruma(expression: String): RegexPattern =
            RegexPattern(Pattern.compile(RegexTranslation(expression).translated()))
    }
}
