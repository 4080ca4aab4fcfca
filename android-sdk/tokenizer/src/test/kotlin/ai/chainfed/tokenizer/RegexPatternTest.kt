package ai.chainfed.tokenizer

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** Oniguruma's meaning of an expression, on Java's engine. */
class RegexPatternTest {
    private fun found(
        expression: String,
        text: String,
    ): List<String> {
        val aligned = AlignedText.of(text)
        val matches = RegexPattern.oniguruma(expression).find(aligned)
        return (0 until matches.size).filter(matches::isMatch).map {
            if (matches.start(it) == matches.end(it)) "" else aligned.slice(matches.start(it), matches.end(it)).string
        }
    }

    @Test
    fun `white space is Unicode's`() {
        val spaces = "\t\n\u000B\u000C\r \u0085\u00A0\u1680\u2003\u2028\u2029\u202F\u205F\u3000"
        assertEquals(listOf(spaces), found("\\s+", "a${spaces}b\u200B\u180E\uFEFF"))
        assertEquals(listOf("a", "b"), found("\\S", "a${spaces}b"))
        assertEquals(listOf("a"), found("[^\\s\\p{L}]|a", "a$spaces"))
    }

    @Test
    fun `letters without case fold as Unicode says`() {
        val contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
        assertEquals(listOf("'S", "'s", "'ſ", "'LL", "'rE"), found(contractions, "'S's'ſ'LL'rE'x"))
        assertEquals(listOf("K", "k", "\u212A"), found("(?i:k)", "Kk\u212A"))
        assertEquals(listOf("Xs"), found("(?i:x)s", "XS Xs"))
    }

    @Test
    fun `a space before a word belongs to it`() {
        val words = "'s| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
        val expected = listOf("the", "  ", " dog", "'s", " 𝟙𝟚", "!?", "\n\n ")
        assertEquals(expected, found(words, "the   dog's 𝟙𝟚!?\n\n "))
    }

    @Test
    fun `places are code points`() {
        val matches = RegexPattern.oniguruma("b").find(AlignedText.of("😀b😀b"))
        assertEquals(listOf(0, 1, 2, 3), (0 until matches.size).map(matches::start))
        assertEquals(List(4) { "" }, found("x*", "😀a😀"))
    }

    @Test
    fun `intervals and escapes`() {
        assertEquals(listOf("123", "45"), found("\\p{N}{1,3}", "12345"))
        assertEquals(listOf("aa"), found("a{,2}", "aa").filter(String::isNotEmpty))
        assertEquals(listOf("\n", "."), found("\\n|\\.|\\u00e9", "a\nb."))
        assertEquals(listOf("]", "-", "^"), found("[\\]\\-\\^]", "a]b-c^"))
        assertEquals(listOf("b", "d"), found("[^a-a\\u0063]", "abcd"))
        assertEquals(listOf("x"), found("\\Ax", "xx"))
        assertEquals(listOf("#", " ", "&"), found("#| |&", "# &"))
    }

    @Test
    fun `what engines understand differently is refused`() {
        val expressions =
            listOf(
                "^a",
                "a$",
                "\\bx",
                "\\w+",
                "(?i)a",
                "(?<n>a)",
                "[a[b]]",
                "[a&&b]",
                "[[:alpha:]]",
                "a{1,2}+",
                "a{2}?",
                "a**",
            ) +
                listOf(
                    "(a",
                    "a)",
                    "[a",
                    "\\",
                    "\\1",
                    "\\p{Han}",
                    "(?i:[a-z])",
                    "(?i:é)",
                    "(?i:ss)",
                    "\\xFF",
                    "a{x}",
                    "\\Q",
                )
        for (expression in expressions) {
            val error = assertThrows(expression, TokenizerException::class.java) { RegexPattern.oniguruma(expression) }
            assertTrue(
                error.message,
                error.message!!.startsWith("The tokenizer file asks for the regular expression '"),
            )
        }
    }
}
