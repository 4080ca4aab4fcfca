package ai.chainfed.apk

import com.android.tools.r8.CompilationFailedException
import com.android.tools.r8.CompilationMode
import com.android.tools.r8.D8
import com.android.tools.r8.D8Command
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
     * files, in which names of classes are corrected.
     */
    fun release(
        jars: List<File>,
        ruleFiles: List<File>,
        rules: List<String>,
        mapping: File,
        into: File,
    ) {
        empty(into)
        val command =
            R8Command
                .builder()
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
