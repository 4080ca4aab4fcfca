package ai.chainfed.apk

import java.io.File

/** What aapt2 made of the app's and its libraries' resources, below [folder]. */
class LinkedResources(
    folder: File,
) {
    /** The manifest in its binary form, the resource table, the resources' files and the assets. */
    val archive = File(folder, "resources.ap_")

    /** Rules that keep what manifest and layouts name. */
    val keepRules = File(folder, "aapt_rules.txt")

    /** Sources of the `R` classes. */
    val sources = File(folder, "java")
}

/** Compiles and links resources with aapt2, the binary at [executable]. */
class Aapt2(
    private val executable: File,
    private val androidJar: File,
) {
    /**
     * Links [resources] (folders named `res`, the strongest last), folders of [assets] and the merged [manifest];
     * writes `R` classes for the app and, so that libraries find theirs, for every package of [libraryPackages].
     */
    fun link(
        manifest: File,
        resources: List<File>,
        assets: List<File>,
        libraryPackages: List<String>,
        into: File,
    ): LinkedResources {
        into.deleteRecursively()
        into.mkdirs()
        val compiled =
            resources.mapIndexed { index, folder ->
                File(into, "compiled_$index.zip").also { run("compile", "--dir", folder.path, "-o", it.path) }
            }
        val linked = LinkedResources(into)
        val overlays = compiled.drop(1).flatMap { listOf("-R", it.path) }
        val packages = libraryPackages.distinct().flatMap { listOf("--extra-packages", it) }
        val input = listOf("-I", androidJar.path, "--manifest", manifest.path, "--auto-add-overlay")
        val outputs =
            listOf("-o", linked.archive.path, "--java", linked.sources.path, "--proguard", linked.keepRules.path)
        val assetFolders = assets.flatMap { listOf("-A", it.path) }
        run(
            "link",
            *(input + outputs + assetFolders + packages + compiled.take(1).map { it.path } + overlays).toTypedArray(),
        )
        return linked
    }

    private fun run(vararg arguments: String) {
        val process = ProcessBuilder(executable.path, *arguments).redirectErrorStream(true).start()
        val said = process.inputStream.bufferedReader().readText()
        if (process.waitFor() != 0) throw BuildFailure("aapt2 ${arguments[0]} failed: ${said.trim()}")
    }

    companion object {
        /** Puts the aapt2 that `apktool-lib` carries for this system into [folder]. */
        fun unpack(folder: File): File {
            val system = System.getProperty("os.name").lowercase()
            val name =
                when {
                    "linux" in system -> "linux/aapt2"
                    "mac" in system -> "macosx/aapt2"
                    "windows" in system -> "windows/aapt2.exe"
                    else -> throw BuildFailure("There is no aapt2 for $system; build on Linux, macOS or Windows.")
                }
            val binary = File(folder, File(name).name)
            val packed = Aapt2::class.java.getResourceAsStream("/prebuilt/$name")
            packed ?: throw BuildFailure("apktool-lib holds no prebuilt/$name; use version 3.0.3.")
            folder.mkdirs()
            packed.use { from -> binary.outputStream().use(from::copyTo) }
            binary.setExecutable(true)
            return binary
        }
    }
}

/** Writes a `res` folder that holds the given strings. */
fun writeStringResources(
    strings: Map<String, String>,
    res: File,
) {
    val escaped =
        strings.map { (name, value) ->
            val text = value.replace("&", "&amp;").replace("<", "&lt;").replace("'", "\\'").replace("\"", "\\\"")
            """    <string name="$name" translatable="false">$text</string>"""
        }
    val file = File(res, "values/build.xml")
    file.parentFile.mkdirs()
    file.writeText(escaped.joinToString("\n", "<resources>\n", "\n</resources>\n"))
}
