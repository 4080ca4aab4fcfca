package ai.chainfed.apk

import java.io.File
import javax.tools.ToolProvider
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

/** Unpacks the AARs; those for tests into a folder of their own; the classes of all together for the compiler. */
private fun unpackLibraries(options: Options) {
    val runtime = options.all("executorch").filter(String::isNotEmpty).map(::File)
    if (runtime.isEmpty()) {
        println(
            "Built without the native runtime: without -Dexecutorch.aar=FILE (org.pytorch:executorch-android) " +
                "the app starts, but cannot train.",
        )
    }
    val libraries = AndroidLibrary.unpackAll(options.paths("aars") + runtime, options.file("into"))
    val classes = options.file("classes")
    classes.deleteRecursively()
    classes.mkdirs()
    val forTests = AndroidLibrary.unpackAll(options.all("test-aar").map(::File), options.file("test-into"))
    for (library in libraries + forTests) {
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
    writeStringResources(
        options.all("string").associate { it.substringBefore('=') to it.substringAfter('=') },
        generated,
    )
    val linked =
        Aapt2(Aapt2.unpack(File(target, "aapt2")), options.file("android")).link(
            manifest,
            libraries.mapNotNull { it.resources } + generated + options.file("res"),
            libraries.mapNotNull { it.assets } + options.file("assets"),
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
    val javac =
        ToolProvider.getSystemJavaCompiler()
            ?: throw BuildFailure("This needs a JDK: the Java here has no javac.")
    val status = javac.run(null, null, null, "--release", "11", "-d", classes.path, *files.toList().toTypedArray())
    if (status != 0) throw BuildFailure("javac could not compile the R classes; what it said stands above.")
}

private fun buildDebug(options: Options) {
    val build = ApkBuild(options)
    Dexer(build.androidJar, build.minSdk).debug(build.jars, build.dexFolder)
    build.finish(serviceFilesOf(build.jars))
}

private fun buildRelease(options: Options) {
    val build = ApkBuild(options)
    val dexer = Dexer(build.androidJar, build.minSdk)
    dexer.release(build.jars, build.ruleFiles, build.rules, File(build.target, "mapping.txt"), build.dexFolder)
    build.finish(renamedServiceFiles(build.dexFolder))
}
