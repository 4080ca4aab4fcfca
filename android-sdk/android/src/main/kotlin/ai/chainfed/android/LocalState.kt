package ai.chainfed.android

import ai.chainfed.core.ChainFedException
import ai.chainfed.json.JsonBoolean
import ai.chainfed.json.JsonException
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.readJson
import ai.chainfed.json.writeJson
import android.util.AtomicFile
import java.io.File
import java.io.IOException

/**
 * What ChainFed keeps on the device, all of it in [folder], which no backup takes. Files appear whole or not at all.
 *
 * Reading what is absent or damaged gives what a new device has: no consent, no figures.
 */
internal class LocalState(
    private val folder: File,
) {
    /** What the device itself keeps. */
    val deviceFolder = File(folder, "device")

    private val consentFile = AtomicFile(File(folder, "consent.json"))
    private val enrolledFile = AtomicFile(File(folder, "enrolled.json"))
    private val figuresFile = AtomicFile(File(folder, "figures.json"))

    /**
     * What the user said.
     *
     * @property isGiven whether they agree. @property mustDelete whether they want everything deleted, which is not
     * done yet.
     * @property scheduled the policy that the work was last scheduled with.
     */
    data class Consent(
        val isGiven: Boolean = false,
        val mustDelete: Boolean = false,
        val scheduled: String = "",
    )

    /** What the user said; a new device's before they said anything. */
    var consent: Consent
        @Synchronized get() {
            val stored = read(consentFile) ?: return Consent()
            return Consent(stored.flag("given"), stored.flag("delete"), stored.text("scheduled").orEmpty())
        }

        @Synchronized set(value) =
            write(
                consentFile,
                JsonObject.of(
                    "given" to JsonBoolean(value.isGiven),
                    "delete" to JsonBoolean(value.mustDelete),
                    "scheduled" to JsonString(value.scheduled),
                ),
            )

    /** The public key that a coordinator last took this device with, in hexadecimal; empty before. */
    var enrolledKey: String
        @Synchronized get() = read(enrolledFile)?.text("public_key").orEmpty()

        @Synchronized set(value) = write(enrolledFile, JsonObject.of("public_key" to JsonString(value)))

    /** What was done and what it cost. */
    data class Figures(
        val roundsDone: Int = 0,
        val peakMemoryBytes: Long = 0,
        val bytesDown: Long = 0,
        val bytesUp: Long = 0,
        val battery: BatteryCost = BatteryCost(0, 0.0, 0.0),
        val lastError: ChainFedException? = null,
    )

    /** The figures as they were last stored. */
    var figures: Figures
        @Synchronized get() {
            val stored = read(figuresFile) ?: return Figures()
            return Figures(
                roundsDone = stored.whole("rounds_done").toInt(),
                peakMemoryBytes = stored.whole("peak_memory_bytes"),
                bytesDown = stored.whole("bytes_down"),
                bytesUp = stored.whole("bytes_up"),
                battery =
                    BatteryCost(
                        stored.whole("battery_percent").toInt(),
                        stored.real("processor_seconds"),
                        stored.real("worked_seconds"),
                    ),
                lastError = storedError(stored),
            )
        }

        @Synchronized set(value) {
            val error = value.lastError
            val code = if (error is ChainFedException.StorageFull) STORAGE else error?.code
            write(
                figuresFile,
                JsonObject.of(
                    "rounds_done" to JsonNumber.of(value.roundsDone.toLong()),
                    "peak_memory_bytes" to JsonNumber.of(value.peakMemoryBytes),
                    "bytes_down" to JsonNumber.of(value.bytesDown),
                    "bytes_up" to JsonNumber.of(value.bytesUp),
                    "battery_percent" to JsonNumber.of(value.battery.percent.toLong()),
                    "processor_seconds" to JsonNumber.of(value.battery.processorSeconds),
                    "worked_seconds" to JsonNumber.of(value.battery.workedSeconds),
                    "error_code" to JsonString(code.orEmpty()),
                    "error_message" to JsonString(error?.message.orEmpty()),
                ),
            )
        }

    /**
     * Stores that the user does not agree. Where nothing can be written, what they said before is removed, which means
     * the same. Throws IOException when neither is possible.
     */
    @Synchronized fun withdraw(mustDelete: Boolean) {
        try {
            consent = Consent(isGiven = false, mustDelete = mustDelete)
        } catch (error: IOException) {
            consentFile.delete()
            if (consentFile.baseFile.exists()) throw error
        }
    }

    /** Removes everything but what the user said. Throws IOException when something stays. */
    @Synchronized fun deleteWork() {
        val rest = folder.listFiles().orEmpty().filter { it != consentFile.baseFile }
        val stays = rest.filterNot { it.deleteRecursively() }
        if (stays.isNotEmpty()) throw IOException("${stays.first().name} cannot be removed")
    }

    /** Removes everything. Throws IOException when something stays. */
    @Synchronized fun delete() {
        if (!folder.deleteRecursively()) throw IOException("${folder.name} cannot be removed")
    }

    private fun storedError(stored: JsonObject): ChainFedException? {
        val code = stored.text("error_code").orEmpty()
        val message = stored.text("error_message").orEmpty()
        if (code.isEmpty()) return null
        return if (code == STORAGE) ChainFedException.StorageFull(message) else ChainFedException.of(code, message)
    }

    private fun read(file: AtomicFile): JsonObject? =
        try {
            readJson(synchronized(files) { file.readFully() }) as? JsonObject
        } catch (_: IOException) {
            null
        } catch (_: JsonException) {
            null
        }

    private fun write(
        file: AtomicFile,
        value: JsonObject,
    ): Unit =
        synchronized(files) {
            folder.mkdirs()
            val bytes = writeJson(value).toByteArray()
            val stream = file.startWrite()
            try {
                stream.write(bytes)
                file.finishWrite(stream)
            } catch (error: IOException) {
                file.failWrite(stream)
                throw error
            }
            // Where the last part of writing fails, AtomicFile says so in the log alone.
            if (!file.readFully().contentEquals(bytes)) throw IOException("${file.baseFile.name} cannot be written")
        }

    private fun JsonObject.flag(key: String): Boolean = (this[key] as? JsonBoolean)?.value ?: false

    private fun JsonObject.text(key: String): String? = (this[key] as? JsonString)?.value

    private fun JsonObject.whole(key: String): Long = (this[key] as? JsonNumber)?.asLong ?: 0

    private fun JsonObject.real(key: String): Double = (this[key] as? JsonNumber)?.asDouble ?: 0.0

    private companion object {
        /** One at a time in the process: whoever reads an AtomicFile removes what another is writing. */
        val files = Any()
        const val STORAGE = "STORAGE_FULL"
    }
}
