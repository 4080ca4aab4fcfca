package ai.chainfed.core

import ai.chainfed.json.JsonBoolean
import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.JsonValue
import ai.chainfed.json.writeJson
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Files that a reader must refuse, and some that it must accept. */
class DamagedVectorsTest {
    @get:Rule
    val folder = TemporaryFolder()

    private fun JsonObject.accepted(): Boolean = (this["accepted"] as JsonBoolean?)?.value ?: false

    private fun JsonObject.text(key: String): String? = (this[key] as JsonString?)?.value

    private fun JsonObject.count(key: String): Int = (this[key] as JsonNumber?)?.asLong?.toInt() ?: 0

    private fun repeated(case: JsonObject): String = case.text("repeat").orEmpty().repeat(case.count("times"))

    @Test
    fun manifests() {
        val vectors = Vectors.read("damaged/manifests.json")
        val valid = vectors["valid"]!!
        val cases = vectors["cases"]!!.list().map { it as JsonObject }
        assertTrue(cases.size > 100)
        for (case in cases) {
            val name = case.text("name")
            val data = case.text("hex")?.let(::bytesOfHex) ?: manifestOf(case, valid).toByteArray()
            val refusal = runCatching { readManifest(data, "The manifest") }.exceptionOrNull()
            assertEquals("$name: $refusal", case.accepted(), refusal == null)
            if (refusal != null) {
                assertTrue("$name: $refusal", refusal is ChainFedException.BadBundle)
                assertTrue("$name: $refusal", refusal.message!!.startsWith("The manifest"))
                assertTrue("$name: $refusal", refusal.message!!.length < 400 && '\n' !in refusal.message!!)
            }
        }
    }

    private fun manifestOf(
        case: JsonObject,
        valid: JsonValue,
    ): String {
        case.text("text")?.let { return it + repeated(case) }
        val path = case["at"]!!.list().map { (it as? JsonString)?.value ?: it.toString() }
        return writeJson(changed(valid, path, case["value"].takeIf { "remove" !in case.members }))
    }

    /** [value] with what is at [path] replaced, or removed. */
    private fun changed(
        value: JsonValue,
        path: List<String>,
        replacement: JsonValue?,
    ): JsonValue {
        if (value is JsonList) {
            val index = path[0].toInt()
            val items = value.values.toMutableList()
            val inner = if (path.size == 1) replacement else changed(items[index], path.drop(1), replacement)
            if (inner == null) items.removeAt(index) else items[index] = inner
            return JsonList(items)
        }
        val members = LinkedHashMap((value as JsonObject).members)
        val inner = if (path.size == 1) replacement else changed(members.getValue(path[0]), path.drop(1), replacement)
        if (inner == null) members.remove(path[0]) else members[path[0]] = inner
        return JsonObject(members)
    }

    @Test
    fun `tensor files`() {
        val cases = Vectors.read("damaged/safetensors.json")["cases"]!!.list().map { it as JsonObject }
        assertTrue(cases.size > 50)
        for (case in cases) {
            val name = case.text("name")
            val file = folder.newFile()
            file.writeBytes(case.text("hex")?.let(::bytesOfHex) ?: tensorFileOf(case))
            val refusal =
                runCatching {
                    java.io.RandomAccessFile(file, "r").use { readTensorLayout(it.channel) }
                }.exceptionOrNull()
            assertEquals("$name: $refusal", case.accepted(), refusal == null)
            assertTrue("$name: $refusal", refusal == null || refusal is DamagedTensors)
        }
    }

    private fun tensorFileOf(case: JsonObject): ByteArray {
        val header =
            case.text("header_hex")?.let(::bytesOfHex) ?: (case.text("header")!! + repeated(case)).toByteArray()
        val length = case.text("length")?.let(java.lang.Long::parseUnsignedLong) ?: header.size.toLong()
        val prefix = ByteBuffer.allocate(Long.SIZE_BYTES).order(ByteOrder.LITTLE_ENDIAN).putLong(length).array()
        return prefix + header + ByteArray(case.count("data_bytes"))
    }
}
