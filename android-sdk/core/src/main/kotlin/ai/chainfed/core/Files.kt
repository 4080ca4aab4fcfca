package ai.chainfed.core

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

/** Gives [part] the name of [target], replacing what has it. Both lie in one folder. */
internal fun moveOver(
    part: File,
    target: File,
) {
    if (!part.renameTo(target)) throw IOException("${part.name} cannot be renamed to ${target.name}")
}

/** Makes a folder and those around it. Throws IOException when that is not possible. */
internal fun makeFolder(folder: File) {
    if (!folder.mkdirs() && !folder.isDirectory) throw IOException("the folder ${folder.name} cannot be made")
}

/** SHA-256 of a file, 64 hexadecimal digits, read in pieces. */
internal fun sha256Of(file: File): String {
    val digest = sha256()
    val piece = ByteArray(PIECE_BYTES)
    file.inputStream().use { stream ->
        while (true) {
            val count = stream.read(piece)
            if (count < 0) break
            digest.update(piece, 0, count)
        }
    }
    return digest.digest().toHex()
}

/** Writes all of [buffer] at [position]. */
internal fun FileChannel.writeFully(
    buffer: ByteBuffer,
    position: Long,
) {
    var at = position
    while (buffer.hasRemaining()) at += write(buffer, at)
}

/** Fills all of [buffer] from [position] on. Throws IOException where the file ends before. */
internal fun FileChannel.readFully(
    buffer: ByteBuffer,
    position: Long,
) {
    var at = position
    while (buffer.hasRemaining()) {
        val count = read(buffer, at)
        if (count < 0) throw IOException("a file is shorter than it should be")
        at += count
    }
}

/**
 * Makes the file exactly [numBytes] long, of zeros where it is new, with all its blocks written: better now than in a
 * step.
 */
internal fun FileChannel.reserve(numBytes: Long) {
    if (size() == numBytes) return
    truncate(0)
    val zeros = ByteBuffer.allocateDirect(PIECE_BYTES)
    var at = 0L
    while (at < numBytes) {
        zeros.clear()
        zeros.limit(minOf(PIECE_BYTES.toLong(), numBytes - at).toInt())
        at += write(zeros, at)
    }
}

private const val PIECE_BYTES = 1 shl 16
