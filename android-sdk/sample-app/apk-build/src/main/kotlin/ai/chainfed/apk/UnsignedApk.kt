package ai.chainfed.apk

import java.io.File
import java.util.zip.CRC32
import java.util.zip.ZipEntry
import java.util.zip.ZipFile
import java.util.zip.ZipOutputStream

/**
 * An APK that is neither aligned nor signed yet: the same files give the same bytes.
 *
 * [resources]: what aapt2 linked. [dexFolder]: of it, the dex files. [nativeLibraries]: folders with one for each
 * architecture. [services]: files that `ServiceLoader` looks for, by name.
 */
class UnsignedApk(
    private val resources: File,
    private val dexFolder: File,
    private val nativeLibraries: List<File>,
    private val services: Map<String, ByteArray>,
) {
    /** Writes it to [apk]. */
    fun write(apk: File) {
        apk.parentFile.mkdirs()
        val written = HashSet<String>()
        ZipOutputStream(apk.outputStream().buffered()).use { out ->
            for (file in contents()) {
                if (!written.add(file.name)) {
                    throw BuildFailure("Two files would be ${file.name} in the APK; leave one out.")
                }
                out.putNextEntry(file.entry())
                out.write(file.bytes)
                out.closeEntry()
            }
        }
    }

    private fun contents(): Sequence<Packed> =
        sequence {
            ZipFile(resources).use { zip ->
                for (entry in zip.entries().asSequence().filter { !it.isDirectory }) {
                    yield(Packed(entry.name, zip.getInputStream(entry).readBytes(), entry.method == ZipEntry.STORED))
                }
            }
            val dexFiles = filesBelow(dexFolder).filterValues { it.extension == "dex" }
            yieldAll(dexFiles.map { (name, file) -> Packed(name, file.readBytes()) })
            // Stored, so that Android maps them from the APK: `extractNativeLibs="false"` asks for that.
            yieldAll(filesBelow(nativeLibraries).map { (name, file) -> Packed("lib/$name", file.readBytes(), true) })
            yieldAll(services.map { (name, bytes) -> Packed(name, bytes) })
        }

    /** Files by their path below a folder; where several folders have the same one, as AARs may, the first counts. */
    private fun filesBelow(folders: List<File>): Map<String, File> =
        folders
            .asReversed()
            .flatMap { filesBelow(it).entries }
            .associate { it.key to it.value }
            .toSortedMap()

    private fun filesBelow(folder: File): Map<String, File> =
        folder
            .walk()
            .filter(File::isFile)
            .associateBy { it.relativeTo(folder).invariantSeparatorsPath }
            .toSortedMap()
}

/** A file of an APK; [isStored]: not compressed. */
private class Packed(
    val name: String,
    val bytes: ByteArray,
    private val isStored: Boolean = false,
) {
    fun entry() =
        ZipEntry(name).apply {
            time = ALWAYS_MILLIS
            if (isStored) {
                method = ZipEntry.STORED
                size = bytes.size.toLong()
                crc = CRC32().apply { update(bytes) }.value
            }
        }

    private companion object {
        const val ALWAYS_MILLIS = 347_155_200_000 // In 1981: no time zone pushes it below what zip can say.
    }
}
