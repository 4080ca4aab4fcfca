package ai.chainfed.json

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test
import java.util.Random

class JsonWriterTest {
    @Test
    fun `a document is written without spaces, in its order`() {
        val value =
            JsonObject.of(
                "z" to JsonList(listOf(JsonNumber.of(-3L), JsonNumber.of(0.5), JsonNull, JsonBoolean(false))),
                "a\n" to JsonString("\"q\" \\ /\t\u0001é😀"),
                "o" to JsonObject.of(),
            )
        val text = "{\"z\":[-3,0.5,null,false],\"a\\n\":\"\\\"q\\\" \\\\ /\\u0009\\u0001é😀\",\"o\":{}}"
        assertEquals(text, writeJson(value))
        assertEquals(value, readJson(text.toByteArray()))
    }

    @Test
    fun `doubles read back bit for bit`() {
        val random = Random(7)
        val drawn = generateSequence { Double.fromBits(random.nextLong()) }.filter { it.isFinite() }.take(20_000)
        val edges = sequenceOf(0.0, -0.0, Double.MIN_VALUE, Double.MAX_VALUE, 2e-3, 1e23, 1.0 / 3, 123456789.0)
        for (value in drawn + edges) {
            val read = readJson(writeJson(JsonNumber.of(value)).toByteArray()) as JsonNumber
            assertEquals(value.toRawBits(), read.asDouble!!.toRawBits())
        }
    }

    @Test
    fun `what JSON cannot hold is not written`() {
        for (value in listOf(Double.NaN, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY)) {
            assertThrows(IllegalArgumentException::class.java) { JsonNumber.of(value) }
        }
        for (text in listOf("", "1 ", "0x1", "1e999", "NaN")) {
            assertThrows(IllegalArgumentException::class.java) { JsonNumber(text) }
        }
        assertThrows(IllegalArgumentException::class.java) { writeJson(JsonString("\uD800")) }
    }
}
