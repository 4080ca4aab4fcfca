package ai.chainfed.apk

import com.android.tools.r8.CompilationFailedException
import com.android.tools.r8.CompilationMode
import com.android.tools.r8.D8
import com.android.tools.r8.D8Command
import com.android.tools.r8.Diagnostic
import com.android.tools.r8.DiagnosticsHandler
import com.android.tools.r8.JdkClassFileProvider
import com.android.tools.r8.OutputMode
import com.android.tools.r8.R8
import com.android.tools.r8.R8Command
import com.android.tools.r8.origin.Origin
import java.io.File

/** Turns the app's and its libraries' classes into dex files for Android from [minSdk] on. */
class Dexer(
    private val androidJar: File,
    private val minSdk: Int,
) {
    /** The `java.*` classes, which this `android.jar` lacks; that Android has them too, the SDK's build watches. */
    private val javaClasses = JdkClassFileProvider.fromSystemJdk()

    /** All classes of [jars] as they are. */
    fun debug(
        jars: List<File>,
        into: File,
    ) {
        empty(into)
        val command =
            D8Command
                .builder()
                .addProgramFiles(jars.map(File::toPath))
                .addLibraryFiles(androidJar.toPath())
                .addLibraryResourceProvider(javaClasses)
                .setMode(CompilationMode.DEBUG)
                .setMinApiLevel(minSdk)
                .setOutput(into.toPath(), OutputMode.DexIndexed)
        attempt("D8") { D8.run(command.build()) }
    }

    /**
     * What the app uses of [jars], shrunk and renamed. Kept is what the [ruleFiles], the jars' own rules
     * (`META-INF/proguard`) and [rules] ask for. [mapping] gets the names before and after; [into] also the jars' other
     * files, in which names of classes are corrected. What R8 warns of fails the build.
     */
    fun release(
        jars: List<File>,
        ruleFiles: List<File>,
        rules: List<String>,
        mapping: File,
        into: File,
    ) {
        empty(into)
        val warnings = Warnings()
        val command =
            R8Command
                .builder(warnings)
                .addProgramFiles(jars.map(File::toPath))
                .addLibraryFiles(androidJar.toPath())
                .addLibraryResourceProvider(javaClasses)
                .addProguardConfigurationFiles(ruleFiles.map(File::toPath))
                .addProguardConfiguration(rules, Origin.unknown())
                .setProguardMapOutputPath(mapping.toPath())
                .setMode(CompilationMode.RELEASE)
                .setMinApiLevel(minSdk)
                .setOutput(into.toPath(), OutputMode.DexIndexed, true)
        attempt("R8") { R8.run(command.build()) }
        if (warnings.all.isNotEmpty()) throw BuildFailure("R8 warns: ${warnings.all.joinToString(" ")}")
    }

    private fun empty(folder: File) {
        folder.deleteRecursively()
        folder.mkdirs()
    }

    private fun attempt(
        name: String,
        action: () -> Unit,
    ) {
        try {
            action()
        } catch (failure: CompilationFailedException) {
            throw BuildFailure("$name failed; what it said stands above.", failure)
        }
    }
}

/** What R8 warns of, but for files beside the classes, such as licences, that several jars have: one is enough. */
private class Warnings : DiagnosticsHandler {
    val all = ArrayList<String>()

    override fun warning(diagnostic: Diagnostic) {
        val message = diagnostic.diagnosticMessage
        if (!SAME_FILE.matches(message)) all += message
    }

    override fun info(diagnostic: Diagnostic) = Unit

    private companion object {
        val SAME_FILE = Regex("Resource '.*' already exists\\.")
    }
}
