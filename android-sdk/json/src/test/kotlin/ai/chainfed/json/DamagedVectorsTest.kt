package ai.chainfed.json

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

/** The recorded damage of manifests and tensor headers, as far as JSON can tell it. */
class DamagedVectorsTest {
    private fun cases(name: String): List<JsonObject> {
        val file = File(System.getProperty("chainfed.vectors"), "damaged/$name")
        val corpus = readJson(file.readBytes()) as JsonObject
        return (corpus["cases"] as JsonList).values.map { it as JsonObject }
    }

    private fun JsonObject.text(key: String): String? = (this[key] as JsonString?)?.value

    private fun JsonObject.bytes(
        text: String,
        hex: String,
    ): ByteArray? {
        text(hex)?.let { digits -> return digits.chunked(2).map { it.toInt(16).toByte() }.toByteArray() }
        val times = (this["times"] as JsonNumber?)?.asLong?.toInt() ?: 0
        return text(text)?.let { (it + (text("repeat") ?: "").repeat(times)).toByteArray() }
    }

    private fun refused(
        name: String,
        text: String,
        hex: String,
    ): Set<String> {
        val found = LinkedHashSet<String>()
        var read = 0
        for (case in cases(name)) {
            val bytes = case.bytes(text, hex) ?: continue
            try {
                readJson(bytes)
                read++
            } catch (error: JsonException) {
                assertTrue(error.reason, error.reason.startsWith("it ") && error.reason.length < 200)
                found.add(case.text("name")!!)
            }
        }
        assertTrue("some are read", read > 1)
        return found
    }

    @Test
    fun `manifests that are no strict JSON are refused, and no others`() {
        val expected =
            setOf("no JSON", "nothing", "NaN", "1e400", "a key twice", "half a surrogate pair", "a byte order mark") +
                setOf("nested 100,000 deep", "objects nested 100,000 deep", "no UTF-8")
        assertEquals(expected, refused("manifests.json", "text", "hex"))
    }

    @Test
    fun `tensor headers that are no strict JSON are refused, and no others`() {
        val expected =
            setOf(
                "no bytes of the header",
                "no JSON",
                "a byte order mark",
                "no UTF-8",
                "UTF-16",
                "a key twice",
                "a field twice",
            ) +
                setOf("the name of a tensor is half a surrogate pair", "an extent of 1e400", "an extent of NaN") +
                setOf("an extent of 5000 digits", "lists nested 100,000 deep", "objects nested 100,000 deep")
        assertEquals(expected, refused("safetensors.json", "header", "header_hex"))
    }
}
