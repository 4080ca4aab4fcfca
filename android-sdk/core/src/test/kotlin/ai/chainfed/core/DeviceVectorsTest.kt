package ai.chainfed.core

import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonValue
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.ByteArrayOutputStream
import java.io.File
import java.nio.FloatBuffer

/** The small parts of docs/device.md, to the last bit. */
class DeviceVectorsTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val vectors = Vectors.read("device.json")

    @Test
    fun `sums take one term after the other`() {
        for (case in vectors.getValue("sums")) {
            assertBits(case["sum"].number(), sumInOrder(case["terms"].numbers()))
        }
    }

    @Test
    fun `moments of columns`() {
        for (case in vectors.getValue("moments")) {
            val rows = case["rows"].list().map { it.floats() }
            val all = FloatBuffer.wrap(rows.flatMap { it.asIterable() }.toFloatArray())
            val moments = Moments(all, rows.size, rows[0].size)
            assertArrayEquals(case["mean"].floats(), moments.mean, 0f)
            assertArrayEquals(case["variance"].floats(), moments.variance, 0f)
        }
    }

    @Test
    fun `centred kernel alignment`() {
        for (case in vectors.getValue("cka")) {
            val left = Centred(Listed(case["x"]))
            val right = Centred(Listed(case["y"]))
            val norms = listOf(left to right, left to left, right to right).map { (a, b) -> squaredCrossNorm(a, b) }
            case["norms"].numbers().zip(norms).forEach { (expected, found) -> assertBits(expected, found) }
            assertBits(case["score"].number(), linearCka(norms[0], norms[1], norms[2]))
        }
    }

    @Test
    fun `what is not finite has no score`() {
        val spoilt = Centred(Listed(listOf(floatArrayOf(1f, Float.NaN), floatArrayOf(2f, 3f))))
        val sound = Centred(Listed(listOf(floatArrayOf(1f, 5f), floatArrayOf(2f, 3f))))
        assertEquals(Double.NaN, squaredCrossNorm(sound, spoilt), 0.0)
        assertEquals(Double.NaN, linearCka(Double.NaN, 1.0, 1.0), 0.0)
    }

    @Test
    fun `tensor files have the exact bytes`() {
        for (case in vectors.getValue("tensor_files")) {
            val tensors =
                (case["tensors"] as JsonObject).members.mapValues { (_, tensor) ->
                    HeapTensor(tensor["shape"].ints().toList(), tensor["values"].floats())
                }
            val bytes = ByteArrayOutputStream().also { encodeTensors(tensors, it) }.toByteArray()
            assertEquals(case["hex"].string(), bytes.toHex())
        }
    }

    @Test
    fun `a journal ends at its first damaged line`() {
        val cases = vectors.getValue("journals")
        val header = cases[0]["records"].list()[0]["header"] as JsonObject
        val lines = bytesOfHex(cases[0]["hex"].string()).toString(Charsets.ISO_8859_1).split("\n").map { it + "\n" }
        for (case in cases) {
            val work = folder.newFolder()
            File(work, "journal").writeBytes(bytesOfHex(case["hex"].string()))
            val records = case["records"].list()
            val name = case["name"].string()
            Journal(work, header.members.mapValues { it.value.string() }).use { journal ->
                for (key in listOf("score", "pass")) {
                    val expected = records.count { it is JsonObject && key in it.members }
                    assertEquals(name, expected, journal.find(key).size)
                }
                journal.append("score", jsonNumbers(listOf(0.1)).values[0])
            }
            val expected = lines.take(maxOf(records.size, 1)).joinToString("") + lines[3]
            assertEquals(name, expected, File(work, "journal").readText(Charsets.ISO_8859_1))
        }
    }

    private fun assertBits(
        expected: Double,
        found: Double,
    ): Unit = assertEquals(expected.toRawBits(), found.toRawBits())

    private fun JsonObject.getValue(key: String): List<JsonValue> = members.getValue(key).list()

    /** Token vectors of a case, a list for each piece. */
    private class Listed private constructor(
        private val pieces: List<TokenPiece>,
        override val width: Int,
    ) : TokenVectors {
        constructor(pieces: JsonValue) : this(
            pieces.list().map { piece ->
                val rows = piece.list().map { it.floats() }
                TokenPiece(rows.flatMap { it.asIterable() }.toFloatArray(), rows.size)
            },
            pieces.list()[0].list()[0].list().size,
        )

        constructor(rows: List<FloatArray>) : this(
            listOf(TokenPiece(rows.flatMap { it.asIterable() }.toFloatArray(), rows.size)),
            rows[0].size,
        )

        override val numPieces: Int = pieces.size

        override fun piece(index: Int): TokenPiece = pieces[index]
    }
}
