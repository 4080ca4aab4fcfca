package ai.chainfed.core

import ai.chainfed.json.JsonException
import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.JsonValue
import ai.chainfed.json.isPrintable
import ai.chainfed.json.readJson
import ai.chainfed.json.shown
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel

/** Bytes that are no safetensors file; [reason] can stand in a sentence. */
internal class DamagedTensors(
    val reason: String,
    cause: Throwable? = null,
) : Exception(reason, cause)

/** Where a tensor lies in a safetensors file: its type by the file's name for it, first byte and length. */
internal data class TensorRange(
    val typeName: String,
    val shape: List<Long>,
    val offset: Long,
    val numBytes: Long,
)

/**
 * The tensors of a safetensors file in the order of its header, read as strictly as `docs/bundle.md` asks.
 *
 * @throws DamagedTensors when it is no such file.
 */
internal fun readTensorLayout(channel: FileChannel): Map<String, TensorRange> {
    val size = channel.size()
    if (size < LENGTH_BYTES) throw DamagedTensors("it ends after $size bytes")
    val length = read(channel, 0, LENGTH_BYTES).order(ByteOrder.LITTLE_ENDIAN).getLong(0)
    if (length < 0 || length > size - LENGTH_BYTES) {
        val claimed = java.lang.Long.toUnsignedString(length)
        throw DamagedTensors("it is truncated or no such file: a header of $claimed bytes does not fit")
    }
    if (length > MAX_HEADER_BYTES) {
        throw DamagedTensors("its header has $length bytes, more than the $MAX_HEADER_BYTES allowed")
    }
    val header = read(channel, LENGTH_BYTES.toLong(), length.toInt()).array()
    if (header.isEmpty() || header[0] != '{'.code.toByte()) throw DamagedTensors("its header does not begin with {")
    val root =
        try {
            readJson(header) as JsonObject
        } catch (error: JsonException) {
            throw DamagedTensors("its header is damaged (${error.reason})", error)
        }
    val start = LENGTH_BYTES + length
    val layout = LinkedHashMap<String, TensorRange>()
    for ((name, entry) in root.members) {
        if (name != "__metadata__") layout[name] = rangeOf(name, entry, start)
    }
    checkCover(layout, start, size)
    return layout
}

private const val LENGTH_BYTES = 8
private const val MAX_HEADER_BYTES = 10_000_000L
private const val MAX_DIMENSIONS = 8
private const val MAX_NAME_LENGTH = 256

private val ITEM_BITS =
    listOf(
        4 to "F4",
        6 to "F6_E2M3 F6_E3M2",
        8 to "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
        16 to "I16 U16 F16 BF16",
        32 to "I32 U32 F32",
        64 to "I64 U64 F64 C64",
    ).flatMap { (bits, names) -> names.split(' ').map { it to bits } }.toMap()

private fun read(
    channel: FileChannel,
    position: Long,
    count: Int,
): ByteBuffer {
    val buffer = ByteBuffer.allocate(count)
    while (buffer.hasRemaining()) {
        if (channel.read(buffer, position + buffer.position()) < 0) throw DamagedTensors("it is truncated")
    }
    return buffer
}

private fun rangeOf(
    name: String,
    entry: JsonValue,
    start: Long,
): TensorRange {
    val points = name.codePointCount(0, name.length)
    if (points !in 1..MAX_NAME_LENGTH || !isPrintable(name)) {
        throw DamagedTensors("${shown(name)} is no name of a tensor")
    }
    val fields = (entry as? JsonObject)?.members.orEmpty()
    val type = (fields["dtype"] as? JsonString)?.value
    val bits =
        ITEM_BITS[type] ?: throw DamagedTensors(
            "tensor ${shown(name)} has ${if (type == null) "no dtype" else "the unknown dtype ${shown(type)}"}",
        )
    val shape = sizes(fields["shape"])
    if (shape == null || shape.size > MAX_DIMENSIONS) {
        throw DamagedTensors("tensor ${shown(name)} has no possible shape")
    }
    val offsets = sizes(fields["data_offsets"])
    if (offsets == null || offsets.size != 2) throw DamagedTensors("tensor ${shown(name)} has no possible offsets")
    val numBits =
        numBits(shape, bits) ?: throw DamagedTensors("tensor ${shown(name)} has a shape whose product is too large")
    val (begin, end) = offsets
    if (end < begin || end - begin > Long.MAX_VALUE / 8 || (end - begin) * 8 != numBits) {
        throw DamagedTensors("tensor ${shown(name)} does not have as many bytes as its shape and dtype take")
    }
    return TensorRange(type!!, shape, start + begin, end - begin)
}

/** Bits of a tensor, or null when its extents, zeros counted as ones, are too many for 63 bits. */
private fun numBits(
    shape: List<Long>,
    bits: Int,
): Long? {
    var product = bits.toLong()
    for (extent in shape) {
        if (extent > 1 && product > Long.MAX_VALUE / extent) return null
        product *= maxOf(extent, 1)
    }
    return if (0L in shape) 0 else product
}

/** A list of whole numbers from 0 to 2^63 - 1, or null. */
private fun sizes(value: JsonValue?): List<Long>? {
    val items = (value as? JsonList)?.values ?: return null
    val numbers = items.map { (it as? JsonNumber)?.asLong ?: return null }
    return numbers.takeIf { all -> all.all { it >= 0 } }
}

/** The tensors' bytes follow each other from the end of the header to the end of the file. */
private fun checkCover(
    layout: Map<String, TensorRange>,
    start: Long,
    size: Long,
) {
    var end = start
    for ((name, place) in layout.entries.sortedWith(compareBy({ it.value.offset }, { it.value.numBytes }))) {
        if (place.offset != end) {
            val fault = if (place.offset < end) "overlaps another" else "follows a hole"
            throw DamagedTensors("tensor ${shown(name)} $fault")
        }
        if (place.numBytes > size - end) {
            throw DamagedTensors("tensor ${shown(name)} does not lie inside the file, which is truncated")
        }
        end += place.numBytes
    }
    if (end != size) throw DamagedTensors("${size - end} bytes follow its last tensor")
}
