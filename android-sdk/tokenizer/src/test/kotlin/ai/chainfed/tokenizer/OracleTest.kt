package ai.chainfed.tokenizer

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

/** Ids and places against the library that the files were made for, through DJL's binding. */
class OracleTest {
    @Test
    fun `real and drawn texts with the models at hand`() {
        val files = File(sharedFolder(), "models").walk().filter { it.name == "tokenizer.json" }.toList()
        assertTrue("at least one model has a tokenizer", files.isNotEmpty())
        val texts = realTexts(150) + drawnTexts(1000)
        for (file in files) compare(file, texts)
    }

    @Test
    fun `drawn texts with the vectors' tokenizers`() {
        for (name in listOf("encoder", "decoder", "language")) {
            compare(File(vectors(), "bundles/$name/bundle/tokenizer.json"), drawnTexts(300))
        }
    }

    private fun compare(
        file: File,
        texts: List<String>,
    ) {
        val own = Tokenizer.read(file)
        // The oracle cuts and pads as the file says unless it is told not to.
        val options = mapOf("truncation" to "false", "padding" to "false")
        HuggingFaceTokenizer.newInstance(file.toPath(), options).use { oracle ->
            for (text in texts) {
                val expected = oracle.encode(text)
                val found = own.encode(text)
                assertArrayEquals(text, expected.ids, LongArray(found.size) { found.ids[it].toLong() })
                assertArrayEquals(text, places(expected, text), places(found))
            }
        }
    }

    /** DJL gives no place for an added token, and a place for each of the others. */
    private fun places(encoding: ai.djl.huggingface.tokenizers.Encoding): IntArray =
        encoding.charTokenSpans.flatMap { if (it == null) listOf(0, 0) else listOf(it.start, it.end) }.toIntArray()

    private fun places(
        encoding: ai.djl.huggingface.tokenizers.Encoding,
        text: String,
    ): IntArray = places(encoding).also { assertTrue(text, it.size == 2 * encoding.ids.size) }

    private fun places(encoding: Encoding): IntArray = encoding.offsets
}
