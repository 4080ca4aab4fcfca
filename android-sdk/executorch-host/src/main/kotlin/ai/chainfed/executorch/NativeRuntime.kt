package ai.chainfed.executorch

import java.io.File
import java.nio.Buffer
import java.nio.ByteBuffer

/**
 * ExecuTorch's runtime on a Linux JVM: the one inside the Python wheel that `build_shim.sh` found.
 *
 * The classes of `org.pytorch.executorch` beside this have the signatures of the Android library
 * `org.pytorch:executorch-android` 1.4.1, which takes their place on phones; tests/vectors/executorch_android_api.txt
 * records them. So code that runs here has been held against that API and against the runtime's own kernels, XNNPACK
 * among them. It has not met the Android library's JNI layer, nor a build of the runtime for Android and its
 * processors.
 *
 * These are the natives of `src/main/native/jni.cpp`, and where their library lies.
 *
 * A `program` is the address that [load] gave, until [free]. A program is not safe for threads: the caller locks.
 */
internal object NativeRuntime {
    /** Names the library's path; without it, the library lies where the module's build puts it. */
    const val LIBRARY_PROPERTY: String = "chainfed.executorch.library"

    private const val BUILT = "native/libchainfed_executorch.so"

    /**
     * This object, with its library loaded. Throws UnsatisfiedLinkError with one sentence when that is missing, and
     * looks again at the next call: a class initialiser would give its reason only once.
     */
    val ready: NativeRuntime by lazy {
        val library = locate()
        if (!library.isFile) {
            throw UnsatisfiedLinkError(
                "ExecuTorch's library for this machine is not at $library; build android-sdk/executorch-host with " +
                    "Maven, or name it with -D$LIBRARY_PROPERTY=PATH.",
            )
        }
        System.load(library.absolutePath)
        this
    }

    private fun locate(): File {
        val named = System.getProperty(LIBRARY_PROPERTY)
        if (!named.isNullOrEmpty()) return File(named)
        // Classes lie in target/classes or in a jar in target: either way, beside target/native.
        val classes =
            File(
                NativeRuntime::class.java.protectionDomain.codeSource.location
                    .toURI(),
            )
        return classes.resolveSibling(BUILT)
    }

    /** The program's address; the runtime's error code below zero when it cannot be loaded. */
    @JvmStatic
    external fun load(
        path: String,
        loadMode: Int,
        threads: Int,
    ): Long

    @JvmStatic
    external fun free(program: Long)

    @JvmStatic
    external fun methods(program: Long): Array<String>

    @JvmStatic
    external fun backends(
        program: Long,
        method: String,
    ): Array<String>

    /** The runtime's error code. */
    @JvmStatic
    external fun loadMethod(
        program: Long,
        method: String,
    ): Int

    /** The runtime's error code. [words] and [buffers] are as [Arguments] writes them. */
    @JvmStatic
    external fun execute(
        program: Long,
        method: String,
        words: LongArray,
        buffers: Array<Buffer?>,
    ): Int

    /** The outputs of the last [execute], as [Arguments] reads them. */
    @JvmStatic
    external fun outputs(
        program: Long,
        method: String,
    ): LongArray

    /** For each output where its tensor lies in the program's arena; null for what is no tensor. */
    @JvmStatic
    external fun outputBuffers(
        program: Long,
        method: String,
    ): Array<ByteBuffer?>

    @JvmStatic
    external fun registeredOperators(): Array<String>

    @JvmStatic
    external fun registeredBackends(): Array<String>

    /** The errors that the runtime logged in this thread since its last [load], [loadMethod] or [execute] began. */
    @JvmStatic
    external fun loggedErrors(): Array<String>
}
