package ai.chainfed.core

import ai.chainfed.json.JsonString
import ai.chainfed.json.writeJson
import java.io.File
import java.io.FileOutputStream
import java.io.OutputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.DigestOutputStream

/** A float32 tensor in memory of the garbage collector's. */
internal class HeapTensor(
    val shape: List<Int>,
    val values: FloatArray,
)

/**
 * Writes float32 tensors as the safetensors bytes of `docs/device.md` section 3, through a second name, and returns the
 * SHA-256 of the file.
 */
internal fun writeTensors(
    file: File,
    tensors: Map<String, HeapTensor>,
): String {
    val part = File(file.path + ".part")
    val digest = sha256()
    DigestOutputStream(FileOutputStream(part).buffered(), digest).use { encodeTensors(tensors, it) }
    moveOver(part, file)
    return digest.digest().toHex()
}

/** The same into a stream. Equal tensors give equal bytes. */
internal fun encodeTensors(
    tensors: Map<String, HeapTensor>,
    target: OutputStream,
) {
    // Names are ASCII, so that the order of characters is that of bytes.
    val sorted = tensors.toSortedMap()
    val header = StringBuilder("{")
    var offset = 0L
    for ((name, tensor) in sorted) {
        if (offset > 0 || header.length > 1) header.append(',')
        val end = offset + FLOAT_BYTES * tensor.values.size.toLong()
        header.append(writeJson(JsonString(name))).append(":{\"dtype\":\"F32\",\"shape\":[")
        header.append(tensor.shape.joinToString(",")).append("],\"data_offsets\":[").append(offset)
        header.append(',').append(end).append("]}")
        offset = end
    }
    header.append('}')
    while (header.length % ALIGNMENT != 0) header.append(' ')
    val bytes = header.toString().toByteArray(Charsets.UTF_8)
    target.write(littleEndian(Long.SIZE_BYTES).putLong(bytes.size.toLong()).array())
    target.write(bytes)
    for (tensor in sorted.values) {
        val data = littleEndian(FLOAT_BYTES * tensor.values.size)
        data.asFloatBuffer().put(tensor.values)
        target.write(data.array())
    }
}

private fun littleEndian(count: Int): ByteBuffer = ByteBuffer.allocate(count).order(ByteOrder.LITTLE_ENDIAN)

private const val FLOAT_BYTES = 4
private const val ALIGNMENT = 8
