package ai.chainfed.apk

import java.io.File
import kotlin.system.exitProcess

private const val USAGE = "Steps: libraries, resources, debug, release."

/** Runs one step of the build: `STEP --option value ...`; the options are those that the step's function reads. */
fun main(arguments: Array<String>) {
    try {
        val options = Options.parse(arguments.drop(1))
        when (arguments.firstOrNull()) {
            "libraries" -> unpackLibraries(options)
            "resources" -> linkResources(options)
            "debug" -> buildDebug(options)
            "release" -> buildRelease(options)
            else -> throw BuildFailure("There is no step '${arguments.firstOrNull().orEmpty()}'. $USAGE")
        }
    } catch (failure: BuildFailure) {
        System.err.println(failure.message)
        exitProcess(1)
    }
}

/** Options of a step, by name. */
private class Options(
    private val values: Map<String, List<String>>,
) {
    fun text(name: String): String = all(name).singleOrNull() ?: throw BuildFailure("This step needs --$name once.")

    fun file(name: String) = File(text(name))

    fun number(name: String) = text(name).toIntOrNull() ?: throw BuildFailure("--$name takes a whole number, not '${text(name)}'.")

    fun all(name: String): List<String> = values[name].orEmpty()

    /** The paths in the file that option [name] gives, as Maven's dependency plugin writes them. */
    fun paths(name: String): List<File> =
        file(name)
            .readText()
            .trim()
            .split(File.pathSeparator)
            .filter(String::isNotEmpty)
            .map(::File)

    companion object {
        fun parse(arguments: List<String>): Options {
            val pairs =
                arguments.chunked(2).map { pair ->
                    if (pair.size != 2 || !pair[0].startsWith("--")) throw BuildFailure("'${pair[0]}' is no option with a value.")
                    pair[0].removePrefix("--") to pair[1]
                }
            return Options(pairs.groupBy({ it.first }, { it.second }))
        }
    }
}

/** Unpacks the AARs, and their classes together for the compiler. */
private fun unpackLibraries(options: Options) {
    val runtime = options.all("executorch").filter(String::isNotEmpty).map(::File)
    if (runtime.isEmpty()) {
        println(
            "Built without the native runtime: without -Dexecutorch.aar=FILE (org.pytorch:executorch-android) the app starts, " +
                "but cannot train.",
        )
    }
    val classes = options.file("classes")
    classes.deleteRecursively()
    classes.mkdirs()
    for (library in AndroidLibrary.unpackAll(options.paths("aars") + runtime, options.file("into"))) {
        for (jar in library.jars) unzip(jar, classes) { it.endsWith(".class") || it.endsWith(".kotlin_module") }
    }
}

/** Merges manifests, links resources, compiles the `R` classes. */
private fun linkResources(options: Options) {
    val libraries = AndroidLibrary.allIn(options.file("libraries"))
    val target = options.file("into")
    val manifest = File(target, "AndroidManifest.xml")
    val identity = AppIdentity(options.text("application"), options.number("min-sdk"), options.number("target-sdk"))
    mergeManifests(options.file("manifest"), libraries, identity, manifest)
    val generated = File(target, "res")
    writeStringResources(options.all("string").associate { it.substringBefore('=') to it.substringAfter('=') }, generated)
    val linked =
        Aapt2(Aapt2.unpack(File(target, "aapt2")), options.file("android")).link(
            manifest,
            libraries.mapNotNull { it.resources } + generated + options.file("res"),
            libraries.map { it.packageName },
            File(target, "linked"),
        )
    compileSources(linked.sources, options.file("classes"))
}

private fun compileSources(
    sources: File,
    classes: File,
) {
    classes.mkdirs()
    val files = sources.walk().filter { it.extension == "java" }.map(File::getPath)
    val javac = javax.tools.ToolProvider.getSystemJavaCompiler() ?: throw BuildFailure("This needs a JDK: the Java here has no javac.")
    val status = javac.run(null, null, null, "--release", "11", "-d", classes.path, *files.toList().toTypedArray())
    if (status != 0) throw BuildFailure("javac could not compile the R classes; what it said stands above.")
}

private fun buildDebug(options: Options) {
    val build = ApkBuild(options)
    Dexer(build.androidJar, build.minSdk).debug(build.jars, build.dexFolder)
    build.finish()
}

private fun buildRelease(options: Options) {
    val build = ApkBuild(options)
    val dexer = Dexer(build.androidJar, build.minSdk)
    dexer.release(build.jars, build.ruleFiles, build.rules, File(build.target, "mapping.txt"), build.dexFolder)
    build.finish()
}

/** What both kinds of APK are made from and where they go. */
private class ApkBuild(
    private val options: Options,
) {
    private val libraries = AndroidLibrary.allIn(options.file("libraries"))
    private val linked = LinkedResources(options.file("linked"))
    val androidJar = options.file("android")
    val minSdk = options.number("min-sdk")
    val target = options.file("into")
    val dexFolder = File(target, "dex")

    /** The app's own classes first, then the libraries'. */
    val jars = listOf(options.file("app")) + libraries.flatMap { it.jars } + options.paths("jars")

    val ruleFiles =
        libraries.mapNotNull { it.consumerRules } + linked.keepRules + options.all("rules").map(::File)

    /** Without the runtime's AAR its classes are absent, which R8 would take for a mistake. */
    val rules =
        if (options.all("executorch").any(String::isNotEmpty)) emptyList() else listOf("-dontwarn org.pytorch.executorch.**")

    fun finish() {
        val unsigned = File(target, "unsigned.apk")
        UnsignedApk(
            linked.archive,
            dexFolder,
            options.all("assets").map(::File) + libraries.mapNotNull { it.assets },
            libraries.mapNotNull { it.nativeLibraries },
            jars,
        ).write(unsigned)
        alignAndSign(unsigned, DebugKey(options.file("key")), minSdk, options.file("apk"))
        unsigned.delete()
    }
}
