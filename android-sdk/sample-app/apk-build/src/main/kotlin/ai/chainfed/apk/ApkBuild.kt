package ai.chainfed.apk

import java.io.File

/** What both kinds of APK are made from and where they go. */
internal class ApkBuild(
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
        if (options.text("executorch").isEmpty()) listOf("-dontwarn org.pytorch.executorch.**") else emptyList()

    fun finish(services: Map<String, ByteArray>) {
        val unsigned = File(target, "unsigned.apk")
        val nativeLibraries = libraries.mapNotNull { it.nativeLibraries }
        UnsignedApk(linked.archive, dexFolder, nativeLibraries, services).write(unsigned)
        alignAndSign(unsigned, DebugKey(options.file("key")), minSdk, options.file("apk"))
        unsigned.delete()
    }
}
