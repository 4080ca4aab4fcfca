package ai.chainfed.core

import ai.chainfed.json.JsonException
import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.JsonValue
import ai.chainfed.json.readJson
import ai.chainfed.json.writeJson
import java.io.Closeable
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.util.zip.CRC32

/**
 * What has been done of an assignment, in a file that a process killed at any point leaves readable
 * (`docs/device.md` section 5).
 *
 * It opens the journal in [folder], and empties the folder first unless its journal begins with [header].
 */
internal class Journal(
    private val folder: File,
    header: Map<String, String>,
) : Closeable {
    private val kept = ArrayList<JsonObject>()
    private val file: RandomAccessFile

    init {
        val expected = JsonObject.of("header" to JsonObject(header.mapValues { JsonString(it.value) }))
        var goodBytes = readRecords()
        if (kept.firstOrNull() != expected) {
            folder.deleteRecursively()
            makeFolder(folder)
            kept.clear()
            goodBytes = 0
        }
        file = RandomAccessFile(path(FILE), "rw")
        file.setLength(goodBytes)
        if (kept.isEmpty()) append(expected)
    }

    /** Adds a record. It counts from the moment that this returns, whatever happens to the process. */
    fun append(record: JsonObject) {
        val body = writeJson(sorted(record)).toByteArray()
        val line = "%08x ".format(crc(body)).toByteArray() + body + '\n'.code.toByte()
        file.channel.writeFully(ByteBuffer.wrap(line), file.length())
        kept.add(record)
    }

    fun append(
        key: String,
        value: JsonValue,
    ): Unit = append(JsonObject.of(key to value))

    /** The values under [key] of all records that have it, in order. */
    fun find(key: String): List<JsonValue> = kept.mapNotNull { it[key] }

    /** A file of the work that the journal speaks of. */
    fun path(name: String): File = File(folder, name)

    /** Closes the file; the folder stays. */
    override fun close(): Unit = file.close()

    /** Removes the folder: the work is handed in, or void. */
    fun discard() {
        close()
        folder.deleteRecursively()
    }

    /** Reads the records up to the first damaged one, and returns the bytes that they take. */
    private fun readRecords(): Long {
        val data = path(FILE).takeIf { it.isFile }?.readBytes() ?: return 0
        var position = 0
        while (true) {
            var end = position
            while (end < data.size && data[end] != '\n'.code.toByte()) end++
            if (end == data.size) return position.toLong()
            kept.add(parse(data, position, end) ?: return position.toLong())
            position = end + 1
        }
    }

    private fun parse(
        data: ByteArray,
        start: Int,
        end: Int,
    ): JsonObject? {
        if (end - start < PREFIX || data[start + PREFIX - 1] != ' '.code.toByte()) return null
        val checksum = String(data, start, PREFIX - 1, Charsets.ISO_8859_1).toLongOrNull(HEXADECIMAL)
        val body = data.copyOfRange(start + PREFIX, end)
        if (checksum != crc(body)) return null
        return try {
            readJson(body) as? JsonObject
        } catch (_: JsonException) {
            null
        }
    }

    private fun sorted(value: JsonValue): JsonValue =
        when (value) {
            is JsonObject -> JsonObject(value.members.toSortedMap().mapValues { sorted(it.value) })
            is JsonList -> JsonList(value.values.map(::sorted))
            else -> value
        }

    private fun crc(body: ByteArray): Long = CRC32().apply { update(body) }.value

    private companion object {
        const val FILE = "journal"
        const val PREFIX = 9
        const val HEXADECIMAL = 16
    }
}

/** A list of numbers. */
internal fun jsonNumbers(values: List<Double>): JsonList = JsonList(values.map { JsonNumber.of(it) })

/** The numbers of a list that this device wrote. */
internal fun JsonValue.numbers(): List<Double> = (this as JsonList).values.map { it.number() }

/** A number that this device wrote. */
internal fun JsonValue.number(): Double = (this as JsonNumber).asDouble!!

/** A whole number that this device wrote. */
internal fun JsonValue.whole(): Long = (this as JsonNumber).asLong!!
