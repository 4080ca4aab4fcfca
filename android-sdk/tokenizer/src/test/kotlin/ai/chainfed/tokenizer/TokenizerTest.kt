package ai.chainfed.tokenizer

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.text.Normalizer.Form
import java.util.concurrent.Callable
import java.util.concurrent.Executors

class TokenizerTest {
    private fun tokenizer(
        model: Model,
        normalizer: Normalizer? = null,
        preTokenizer: PreTokenizer? = null,
        postProcessor: PostProcessor? = null,
        added: Map<Int, AddedToken> = emptyMap(),
    ): Tokenizer = Tokenizer(AddedTokens(added, normalizer), preTokenizer, model, postProcessor, emptyMap())

    private fun bpe(
        tokens: List<String>,
        merges: List<Pair<String, String>>,
        options: BpeOptions = BpeOptions(null, "", "", false, false, false),
    ): BpeModel {
        val ids = tokens.withIndex().associate { (id, token) -> token to id }
        val ranked = Merges(merges.size)
        for ((left, right) in merges) ranked.add(ids.getValue(left), ids.getValue(right), ids.getValue(left + right))
        return BpeModel(ids, ranked, options)
    }

    private fun ranges(encoding: Encoding): List<IntRange> =
        (0 until encoding.size).map { encoding.start(it) until encoding.end(it) }

    @Test
    fun `merges come in the order of their ranks, from the left`() {
        val tokens = listOf("a", "b", "c", "ab", "bc", "abc", "aa")
        val merges = listOf("b" to "c", "a" to "bc", "a" to "b", "a" to "a")
        val encoding = tokenizer(bpe(tokens, merges)).encode("abcabaaa")
        assertArrayEquals(intArrayOf(5, 3, 6, 0), encoding.ids)
        assertEquals(listOf(0..2, 3..4, 5..6, 7..7), ranges(encoding))
    }

    @Test
    fun `bytes stand for the whole character that they are part of`() {
        val tokens = listOf("<unk>", "a") + (0..255).map { "<0x%02X>".format(it) }
        val encoding =
            tokenizer(
                bpe(tokens, emptyList(), BpeOptions("<unk>", "", "", true, true, false)),
            ).encode("a😀a")
        assertArrayEquals(intArrayOf(1, 2 + 0xF0, 2 + 0x9F, 2 + 0x98, 2 + 0x80, 1), encoding.ids)
        assertEquals(listOf(0..0, 1..1, 1..1, 1..1, 1..1, 2..2), ranges(encoding))
    }

    @Test
    fun `the unknown in a row is one token only when it is to be`() {
        for (fuses in listOf(true, false)) {
            val model = bpe(listOf("?", "a"), emptyList(), BpeOptions("?", "", "", fuses, false, false))
            assertArrayEquals(
                if (fuses) intArrayOf(1, 0, 1) else intArrayOf(1, 0, 0, 1),
                tokenizer(model).encode("axya").ids,
            )
        }
    }

    @Test
    fun `the most probable pieces win`() {
        val scores = mapOf("<unk>" to 0.0, "a" to -1.0, "b" to -1.0, "ab" to -1.5, "c" to -5.0, "abc" to -7.0)
        val model = UnigramModel(scores.map { (token, score) -> ScoredToken(token, score) }, 0, false)
        assertArrayEquals(intArrayOf(3, 4, 0, 3), tokenizer(model).encode("abcxyab").ids)
        assertEquals(listOf(0..1, 2..2, 3..4, 5..6), ranges(tokenizer(model).encode("abcxyab")))
    }

    @Test
    fun `words are cut to the longest pieces, or are unknown as a whole`() {
        val ids =
            listOf("[UNK]", "un", "##aff", "##able", "##a", "unaff").withIndex().associate { (id, token) ->
                token to
                    id
            }
        val tokenizer = tokenizer(WordPieceModel(ids, "[UNK]", "##", 10), preTokenizer = Split.whitespace())
        assertArrayEquals(intArrayOf(5, 3, 0, 0), tokenizer.encode("unaffable unx unaffableaa").ids)
        assertEquals(listOf(0..4, 5..8, 10..12, 14..24), ranges(tokenizer.encode("unaffable unx unaffableaa")))
    }

    @Test
    fun `the place of a normalised character is the one it came from`() {
        val ids = mapOf("e" to 0, "f" to 1, "i" to 2, "한" to 3, "x" to 4)
        val model = BpeModel(ids, Merges(0), BpeOptions(null, "", "", false, false, false))
        val steps = listOf(UnicodeNormalization(Form.NFKD), Filter(::isMark), UnicodeNormalization(Form.NFC), Lowercase)
        val tokenizer = tokenizer(model, normalizer = NormalizerSequence(steps))
        val encoding = tokenizer.encode("É\u0301ﬁ한\u1112\u1161\u11abX")
        assertArrayEquals(intArrayOf(0, 1, 2, 3, 3, 4), encoding.ids)
        assertEquals(listOf(0..0, 2..2, 2..2, 3..3, 4..4, 7..7), ranges(encoding))
    }

    @Test
    fun `added tokens are found before the model sees a text`() {
        val words = WordLevelModel(mapOf("?" to 0, "a" to 1, "day" to 2), "?")
        val added =
            mapOf(
                7 to AddedToken("<m>", false, true, false, false, true),
                8 to AddedToken("Day", true, false, false, true, false),
                9 to AddedToken("<m>x", false, false, true, false, true),
            )
        val tokenizer = tokenizer(words, Lowercase, Split.whitespace(), added = added)
        assertArrayEquals(intArrayOf(1, 7, 1), tokenizer.encode("a  <m>a").ids)
        assertEquals(listOf(0..0, 1..5, 6..6), ranges(tokenizer.encode("a  <m>a")))
        assertArrayEquals(intArrayOf(1, 8, 0, 9, 1), tokenizer.encode("a dAY days <m>x  a").ids)
    }

    @Test
    fun `special tokens are kept when a text is cut`() {
        val words = WordLevelModel(mapOf("?" to 0, "a" to 1, "b" to 2), "?")
        val both = Surrounding(intArrayOf(5), intArrayOf(6))
        val tokenizer = tokenizer(words, null, Split.whitespace(), both)
        assertEquals(2, tokenizer.specialTokenCount)
        assertArrayEquals(intArrayOf(5, 1, 2, 1, 6), tokenizer.encode("a b a").ids)
        assertArrayEquals(intArrayOf(0, 0, 0, 1, 2, 3, 4, 5, 0, 0), tokenizer.encode("a b a").offsets)
        assertArrayEquals(intArrayOf(5, 1, 2, 6), tokenizer.encode("a b a", maxLength = 4).ids)
        assertArrayEquals(intArrayOf(5, 6), tokenizer.encode("a b a", maxLength = 2).ids)
        assertArrayEquals(intArrayOf(5), tokenizer.encode("a b a", maxLength = 1).ids)
        assertArrayEquals(intArrayOf(1, 2), tokenizer.encode("a b a", addSpecialTokens = false, maxLength = 2).ids)
        assertArrayEquals(intArrayOf(5, 6), tokenizer.encode("").ids)
    }

    @Test
    fun `a long word takes time in proportion to its length`() {
        val letters = ('a'..'z').map(Char::toString)
        val pairs = letters.flatMap { left -> letters.map { left to it } }
        val byte = tokenizer(bpe(letters + pairs.map { it.first + it.second }, pairs))
        val scored = (letters + pairs.map { it.first + it.second }).map { ScoredToken(it, -1.0) }
        for (tokenizer in listOf(byte, tokenizer(UnigramModel(scored, null, false)))) {
            fun seconds(size: Int): Double {
                val text = String(CharArray(size) { 'a' + (it * 7 + it / 26) % 26 })
                val start = System.nanoTime()
                val encoding = tokenizer.encode(text)
                assertEquals(size, encoding.end(encoding.size - 1))
                return (System.nanoTime() - start) / 1e9
            }
            repeat(3) { seconds(20_000) }
            // Quadratic work would take 400 times as long; so much noise there is not.
            assertTrue(seconds(400_000) < 100 * maxOf(0.01, seconds(20_000)))
        }
    }

    @Test
    fun `threads may share a tokenizer`() {
        val words = CachedModel(WordLevelModel(mapOf("?" to 0) + (1..500).associateBy { "w$it" }, "?"))
        val tokenizer = tokenizer(words, null, Split.whitespace())
        val texts = (1..500).map { "w$it w${501 - it} x$it" }
        val pool = Executors.newFixedThreadPool(4)
        try {
            val jobs = (1..8).map { pool.submit(Callable { texts.map { tokenizer.encode(it).ids.toList() } }) }
            val expected = (1..500).map { listOf(it, 501 - it, 0) }
            for (job in jobs) assertEquals(expected, job.get())
        } finally {
            pool.shutdown()
        }
    }
}
