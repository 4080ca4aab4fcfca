package ai.chainfed.apk

import java.io.File
import java.util.zip.CRC32
import java.util.zip.ZipEntry
import java.util.zip.ZipFile
import java.util.zip.ZipOutputStream

/** An APK that is neither aligned nor signed yet: the same files give the same bytes. */
class UnsignedApk(
    private val resources: File,
    private val dexFolder: File,
    private val assets: List<File>,
    private val nativeLibraries: List<File>,
    private val jars: List<File>,
) {
    fun write(apk: File) {
        apk.parentFile.mkdirs()
        val written = HashSet<String>()
        ZipOutputStream(apk.outputStream().buffered()).use { out ->
            fun put(
                name: String,
                bytes: ByteArray,
                stored: Boolean,
            ) {
                if (!written.add(name)) throw BuildFailure("Two files would be $name in the APK; leave one out.")
                out.putNextEntry(entry(name, bytes, stored))
                out.write(bytes)
                out.closeEntry()
            }
            ZipFile(resources).use { zip ->
                for (entry in zip.entries().asSequence().filter { !it.isDirectory }) {
                    put(entry.name, zip.getInputStream(entry).readBytes(), entry.method == ZipEntry.STORED)
                }
            }
            for ((name, file) in filesBelow(dexFolder)) put(name, file.readBytes(), stored = false)
            for (folder in assets) for ((name, file) in filesBelow(folder)) put("assets/$name", file.readBytes(), stored = false)
            // Stored, so that Android maps them from the APK: `extractNativeLibs="false"` asks for that.
            for ((name, file) in filesBelow(nativeLibraries)) put("lib/$name", file.readBytes(), stored = true)
            for ((name, bytes) in serviceFiles()) put(name, bytes, stored = false)
        }
    }

    /** Names of implementations that `ServiceLoader` looks up, as gRPC does; jars that name the same service are joined. */
    private fun serviceFiles(): Map<String, ByteArray> {
        val lines = sortedMapOf<String, LinkedHashSet<String>>()
        for (jar in jars) {
            ZipFile(jar).use { zip ->
                for (entry in zip.entries().asSequence().filter { it.name.startsWith(SERVICES) && !it.isDirectory }) {
                    val named = zip.getInputStream(entry).bufferedReader().readLines()
                    lines.getOrPut(entry.name, ::LinkedHashSet) += named
                }
            }
        }
        return lines.mapValues { (_, names) -> names.joinToString("\n", postfix = "\n").toByteArray() }
    }

    /** Files by their path below a folder; of several folders with the same file, which AARs may bring along, the first counts. */
    private fun filesBelow(folders: List<File>): Map<String, File> =
        folders.asReversed().flatMap { filesBelow(it).entries }.associate { it.key to it.value }.toSortedMap()

    private fun filesBelow(folder: File): Map<String, File> =
        folder.walk().filter(File::isFile).associateBy { it.relativeTo(folder).invariantSeparatorsPath }.toSortedMap()

    private fun entry(
        name: String,
        bytes: ByteArray,
        stored: Boolean,
    ) = ZipEntry(name).apply {
        time = EPOCH_OF_ZIP_MILLIS
        if (stored) {
            method = ZipEntry.STORED
            size = bytes.size.toLong()
            crc = CRC32().apply { update(bytes) }.value
        }
    }

    private companion object {
        const val SERVICES = "META-INF/services/"
        const val EPOCH_OF_ZIP_MILLIS = 347_155_200_000 // 1981: the oldest time that no time zone pushes below what zip can say.
    }
}
