package ai.chainfed.json

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class JsonReaderTest {
    private fun read(text: String): JsonValue = readJson(text.toByteArray())

    private fun reason(data: ByteArray): String = assertThrows(JsonException::class.java) { readJson(data) }.reason

    private fun reason(text: String): String = reason(text.toByteArray())

    @Test
    fun `every kind of value is read`() {
        val document = read(" {\"a\": [1, -2.5e3, true, false, null, \"x\"],\n\t\"b\":{},\r\"c\":[] } ")
        val list = listOf(JsonNumber("1"), JsonNumber("-2.5e3"), JsonBoolean(true), JsonBoolean(false), JsonNull)
        val expected =
            JsonObject.of(
                "a" to JsonList(list + JsonString("x")),
                "b" to JsonObject.of(),
                "c" to JsonList(emptyList()),
            )
        assertEquals(expected, document)
        assertEquals(listOf("a", "b", "c"), (document as JsonObject).members.keys.toList())
        assertNull(document["d"])
    }

    @Test
    fun `numbers are integers as they are written`() {
        assertEquals(7L, (read("7") as JsonNumber).asLong)
        assertEquals(0L, (read("-0") as JsonNumber).asLong)
        assertEquals(Long.MIN_VALUE, (read("-9223372036854775808") as JsonNumber).asLong)
        assertNull((read("9223372036854775808") as JsonNumber).asLong)
        assertNull((read("2.0") as JsonNumber).asLong)
        assertFalse((read("1e2") as JsonNumber).isInteger)
        assertEquals(100.0, (read("1E+2") as JsonNumber).asDouble!!, 0.0)
        assertEquals(0.0, (read("1e-400") as JsonNumber).asDouble!!, 0.0)
        val large = read("1" + "0".repeat(400)) as JsonNumber
        assertTrue(large.isInteger)
        assertNull(large.asLong)
        assertNull(large.asDouble)
    }

    @Test
    fun `numbers that JSON does not have are refused`() {
        for (text in listOf("01", "-", "+1", ".5", "1.", "1e", "1e+", "0x1", "1_0", "--1", "1.e3", "١")) {
            assertTrue(text, reason(text).startsWith("it is no JSON: "))
        }
        assertEquals("it holds the number '-1e400', which is too large", reason("[-1e400]"))
        assertEquals("it holds NaN, which is no JSON", reason("[NaN]"))
        assertEquals("it holds Infinity, which is no JSON", reason("{\"a\":Infinity}"))
        assertEquals("it holds -Infinity, which is no JSON", reason("-Infinity"))
        assertTrue(reason("9".repeat(4301)).endsWith("..., which is too large"))
        assertEquals(4300, (read("9".repeat(4300)) as JsonNumber).text.length)
    }

    @Test
    fun `escapes become what they stand for`() {
        assertEquals(
            JsonString("\"\\/\b\u000C\n\r\tA\u00e9\u0000"),
            read("\"\\\"\\\\\\/\\b\\f\\n\\r\\tA\\u00e9\\u0000\""),
        )
        assertEquals(JsonString("a😀b😀é中"), read("\"a\\ud83d\\uDE00b😀é中\""))
        assertEquals(JsonString("\u007f\u2028"), read("\"\u007f\u2028\""))
        for (text in listOf("\"\\x41\"", "\"\\u12g4\"", "\"\\u12\"", "\"\\\"", "\"", "\"a\nb\"", "\"\\n\u0001\"")) {
            assertTrue(text, reason(text).startsWith("it is no JSON: a string "))
        }
    }

    @Test
    fun `halves of surrogate pairs are refused in every notation`() {
        val half = "it holds half a surrogate pair, which is no text"
        for (text in listOf(
            "\\ud83d",
            "\\ude00",
            "\\ude00\\ud83d",
            "\\ud83dx",
            "\\ud83d\\ud83d\\ude00",
            "\\uD83D\\n",
        )) {
            assertEquals(text, half, reason("{\"$text\": 1}"))
            assertEquals(text, half, reason("[\"$text\"]"))
        }
        val encoded = byteArrayOf('"'.code.toByte(), 0xED.toByte(), 0xA0.toByte(), 0x80.toByte(), '"'.code.toByte())
        assertEquals("it is no UTF-8 at byte 1", reason(encoded))
    }

    @Test
    fun `only well-formed UTF-8 is text`() {
        val bad =
            listOf("80", "c080", "c1bf", "e08080", "f0808080", "f4908080", "f5808080", "ff", "c3", "e282", "f09f98")
        for (hex in bad) {
            val bytes = hex.chunked(2).map { it.toInt(16).toByte() }.toByteArray()
            assertEquals(
                hex,
                "it is no UTF-8 at byte 1",
                reason(byteArrayOf('"'.code.toByte()) + bytes + '"'.code.toByte()),
            )
        }
        val most = String(Character.toChars(0x10FFFF)) + "\uFFFF\uE000\uD7FF\u0800\u07FF\u0080"
        assertEquals(JsonString(most), read("\"$most\""))
        assertEquals("it begins with a byte order mark", reason("\uFEFF{}"))
        assertTrue(reason("{}".toByteArray(Charsets.UTF_16LE)).startsWith("it is no JSON: "))
    }

    @Test
    fun `what is no JSON is refused`() {
        val texts =
            listOf(
                "",
                " ",
                "{",
                "[",
                "[1",
                "[1,",
                "[1,]",
                "[,]",
                "{,}",
                "{\"a\"}",
                "{\"a\":}",
                "{\"a\":1,}",
                "{a:1}",
                "tru",
                "nul",
            ) +
                listOf("'a'", "1 2", "{}{}", "[] x", "// a\n1", "{\"a\" 1}", "True", "]", "\u00a01", "1\u0000")
        for (text in texts) assertTrue(text, reason(text).startsWith("it is no JSON: "))
    }

    @Test
    fun `a key twice is refused however it is written`() {
        assertEquals("it names 'a' twice", reason("{\"a\":1,\"b\":2,\"a\":1}"))
        assertEquals("it names 'a' twice", reason("[{\"a\":null,\"\\u0061\":null}]"))
        assertEquals("it names '\\u000a\\u001b' twice", reason("{\"\\n\\u001b\":1,\"\\n\\u001b\":1}"))
        val long = "k".repeat(300)
        assertEquals(80 + "it names  twice".length, reason("{\"$long\":1,\"$long\":1}").length)
        assertEquals(2, (read("[{\"a\":1},{\"a\":1}]") as JsonList).values.size)
    }

    @Test
    fun `nesting has a limit`() {
        val allowed = "[".repeat(3) + "]".repeat(3)
        assertEquals(allowed, readJson(allowed.toByteArray(), maxDepth = 3).toString())
        val error = assertThrows(JsonException::class.java) { readJson("[$allowed]".toByteArray(), maxDepth = 3) }
        assertEquals("it is nested too deeply", error.reason)
        assertEquals("it is nested too deeply", reason("{\"a\":".repeat(100_000)))
        assertEquals(
            MAX_JSON_DEPTH * 2,
            read("[".repeat(MAX_JSON_DEPTH) + "]".repeat(MAX_JSON_DEPTH)).toString().length,
        )
    }

    @Test
    fun `every truncation of a document is refused`() {
        val whole = "{\"a\":[1.5,\"é\\n😀\",{\"b\":null}],\"c\":true}".toByteArray()
        readJson(whole)
        for (size in whole.indices) reason(whole.copyOf(size))
    }
}
