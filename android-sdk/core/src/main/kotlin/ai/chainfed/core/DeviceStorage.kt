package ai.chainfed.core

import ai.chainfed.json.JsonException
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.readJson
import ai.chainfed.json.writeJson
import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.channels.FileLock
import java.nio.channels.OverlappingFileLockException
import java.security.SecureRandom

/**
 * A device's state folder (`docs/device.md` section 9), for one process at a time.
 *
 * @throws ChainFedException.BadInput when it cannot be made, InUse when another device works in it.
 */
internal class DeviceStorage(
    private val folder: File,
) : Closeable {
    /** One folder for each assignment under way. */
    val work = File(folder, "work")

    /** Hidden states that outlive a round. */
    val cache = File(folder, "cache")

    /** Blobs of bundles, kept from run to run. */
    val files = BlobFolder(File(folder, "files"))

    /** Blobs of the model state, kept while the newest assignment names them. */
    val pieces = BlobFolder(File(folder, "pieces"))

    private val lockFile: RandomAccessFile
    private val lock: FileLock

    init {
        try {
            for (each in listOf(work, cache, files.folder, pieces.folder)) makeFolder(each)
            lockFile = RandomAccessFile(File(folder, "lock"), "rw")
        } catch (error: IOException) {
            throw ChainFedException.BadInput(
                "The state folder cannot be used (${error.message}); give another one.",
                error,
            )
        }
        lock = tryLock() ?: run {
            lockFile.close()
            throw ChainFedException.InUse("Another device works in this state folder; end it or give another folder.")
        }
    }

    /** The device's key: [wanted], or the one it had before, or a new one; kept from now on. */
    fun deviceKey(wanted: String?): String {
        val file = File(folder, IDENTITY)
        val kept = keptKey(file)
        val key = wanted ?: kept ?: newKey()
        if (key.length !in 1..MAX_KEY_LENGTH || !key.all { it in ' '..'~' }) {
            throw ChainFedException.BadInput(
                "The device key is not 1 to $MAX_KEY_LENGTH printable ASCII characters; give another one.",
            )
        }
        if (key != kept) {
            val part = File(folder, "$IDENTITY.part")
            part.writeText(writeJson(JsonObject.of("device_key" to JsonString(key))) + "\n")
            moveOver(part, file)
        }
        return key
    }

    /** Removes what was under way for any other assignment. */
    fun forgetOtherWork(assignmentId: String) {
        work.listFiles().orEmpty().forEach { if (it.name != assignmentId) it.deleteRecursively() }
    }

    /** Removes every other kept file of this role ("train", "test"), once [file] is there. */
    fun keepInCache(
        role: String,
        file: File,
    ) {
        if (!file.exists()) return
        cache.listFiles().orEmpty().forEach { if (it.name.startsWith("$role-") && it != file) it.delete() }
    }

    override fun close() {
        lock.release()
        lockFile.close()
    }

    private fun tryLock(): FileLock? =
        try {
            lockFile.channel.tryLock()
        } catch (_: OverlappingFileLockException) {
            null
        }

    private fun keptKey(file: File): String? =
        try {
            ((readJson(file.readBytes()) as? JsonObject)?.get("device_key") as? JsonString)?.value
        } catch (_: IOException) {
            null
        } catch (_: JsonException) {
            null
        }

    private fun newKey(): String = ByteArray(KEY_BYTES).also { SecureRandom().nextBytes(it) }.toHex()

    private companion object {
        const val IDENTITY = "device.json"
        const val MAX_KEY_LENGTH = 128
        const val KEY_BYTES = 16
    }
}
