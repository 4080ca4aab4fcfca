package ai.chainfed.tokenizer

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.readJson
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

/** Every text of the vectors' bundles gives the recorded ids, cut and padded to the programs' length. */
class VectorsTest {
    @Test
    fun `the texts of the encoder's vectors`() = check("encoder")

    @Test
    fun `the texts of the decoder's vectors`() = check("decoder")

    @Test
    fun `the texts of the language model's vectors`() = check("language")

    private fun check(name: String) {
        val folder = File(vectors(), "bundles/$name")
        val tokenizer = Tokenizer.read(File(folder, "bundle/tokenizer.json"))
        val padding = member(readJson(File(folder, "bundle/manifest.json").readBytes()), "tokenizer", "pad_token_id")
        val texts = (member(readJson(File(folder, "cases.json").readBytes()), "texts") as JsonList).values
        assertTrue(texts.isNotEmpty())
        for (case in texts) {
            val expected = (member(case, "input_ids") as JsonList).values.map { (it as JsonNumber).asLong!!.toInt() }
            val text = (member(case, "text") as JsonString).value
            val ids = tokenizer.encode(text, maxLength = expected.size).ids.toList()
            val padded = ids + List(expected.size - ids.size) { (padding as JsonNumber).asLong!!.toInt() }
            assertEquals(text, expected, padded)
        }
    }

    private fun member(
        value: Any?,
        vararg keys: String,
    ): Any? = keys.fold(value) { current, key -> (current as JsonObject)[key] }
}
