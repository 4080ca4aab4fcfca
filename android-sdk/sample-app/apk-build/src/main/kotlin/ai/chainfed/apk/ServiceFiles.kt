package ai.chainfed.apk

import java.io.File
import java.util.zip.ZipFile

private const val SERVICES = "META-INF/services/"

/** Names of implementations that `ServiceLoader` looks up, by file name; jars that name the same service are joined. */
fun serviceFilesOf(jars: List<File>): Map<String, ByteArray> {
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

/** The same as R8 left them in [folder]: with the names that classes have after renaming. */
fun renamedServiceFiles(folder: File): Map<String, ByteArray> =
    File(folder, SERVICES)
        .listFiles()
        .orEmpty()
        .associate { SERVICES + it.name to it.readBytes() }
        .toSortedMap()
