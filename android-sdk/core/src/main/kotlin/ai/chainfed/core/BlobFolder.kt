package ai.chainfed.core

import ai.chainfed.v1.BlobRef
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

/**
 * Fetched blobs under their SHA-256. What carries its final name is whole and was verified (`docs/device.md` section
 * 3).
 */
internal class BlobFolder(
    val folder: File,
) {
    private val verified = HashSet<String>()

    /** A blob's file, and the bytes that came over the network for it. */
    class Fetched(
        val file: File,
        val received: Long,
    )

    /**
     * The blob, fetched where it is missing and going on where an earlier attempt stopped.
     *
     * @throws ChainFedException.BadBundle naming [what] when the coordinator sends other bytes twice.
     */
    suspend fun fetch(
        coordinator: Coordinator,
        ref: BlobRef,
        what: String,
    ): Fetched {
        makeFolder(folder)
        val file = File(folder, ref.sha256)
        if (file.isFile && (ref.sha256 in verified || isWhole(file, ref))) {
            verified += ref.sha256
            return Fetched(file, 0)
        }
        val part = File(folder, "${ref.sha256}.part")
        var received = 0L
        repeat(ATTEMPTS) {
            RandomAccessFile(part, "rw").use { received += download(coordinator, ref, it.channel) }
            if (isWhole(part, ref)) {
                moveOver(part, file)
                verified += ref.sha256
                return Fetched(file, received)
            }
            part.delete()
        }
        throw ChainFedException.BadBundle(
            "The coordinator sends bytes for $what that do not have its SHA-256; its copy is damaged: " +
                "export the bundle again and create a new run.",
        )
    }

    /** Removes every blob that is not named, and what was left of broken downloads. */
    fun keepOnly(names: Set<String>) {
        folder.listFiles().orEmpty().forEach { if (it.name !in names) it.delete() }
        verified.retainAll(names)
    }

    private suspend fun download(
        coordinator: Coordinator,
        ref: BlobRef,
        target: FileChannel,
    ): Long {
        var received = 0L
        coordinator.attempt(progress = { received }) {
            val offset = target.size()
            if (offset < ref.sizeBytes || ref.sizeBytes == 0L) {
                var end = offset
                coordinator.fetchBlob(ref, offset) { data ->
                    end += data.size()
                    if (end <= ref.sizeBytes) {
                        write(data.asReadOnlyByteBuffer(), target)
                        received += data.size()
                    }
                    end < ref.sizeBytes
                }
            }
        }
        return received
    }

    private fun write(
        data: ByteBuffer,
        target: FileChannel,
    ): Unit = target.writeFully(data, target.size())

    private fun isWhole(
        file: File,
        ref: BlobRef,
    ): Boolean = file.length() == ref.sizeBytes && sha256Of(file) == ref.sha256

    private companion object {
        const val ATTEMPTS = 2
    }
}
