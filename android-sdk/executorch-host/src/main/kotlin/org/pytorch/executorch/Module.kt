package org.pytorch.executorch

import ai.chainfed.executorch.Arguments
import ai.chainfed.executorch.LoadedProgram
import ai.chainfed.executorch.NativeRuntime
import java.io.Closeable
import java.lang.ref.Cleaner
import java.lang.ref.Reference
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock

/**
 * A program (`.pte`) on ExecuTorch, on this machine's JVM.
 *
 * One thread at a time runs it; others wait. Every method but [close] and [destroy] throws IllegalStateException once
 * the module is closed. The tensors that it gives lie in its arena: the next call writes over them, and reading them
 * after [close] reads freed memory.
 *
 * Where it is stricter than the Android library: a number of inputs that is not the method's is always refused, where
 * a phone runs with ones when there are none, and with those of the call before when some are missing.
 */
public open class Module private constructor(
    path: String,
    loadMode: Int,
    numThreads: Int,
) : Closeable {
    private val lock = ReentrantLock()
    private val program = LoadedProgram(loadProgram(path, loadMode, numThreads))
    private val metadata: Map<String, MethodMetadata>

    init {
        val address = program.address()
        metadata =
            NativeRuntime.methods(address).associateWith { MethodMetadata(it, NativeRuntime.backends(address, it)) }
        // It sees the address alone: a reference to this object would keep it alive.
        cleaner.register(this, program)
    }

    /** [execute] of the method `forward`. */
    public open fun forward(vararg inputs: EValue): Array<EValue> = execute("forward", *inputs)

    /**
     * Runs a method, which is loaded at its first call. Tensors are used where they lie, without a copy.
     *
     * Throws ExecutorchRuntimeException when there is no such method, when the inputs' number, dtypes or shapes are not
     * the method's, and when it fails.
     */
    public open fun execute(
        methodName: String,
        vararg inputs: EValue,
    ): Array<EValue> =
        whileOpen { address ->
            val error = NativeRuntime.execute(address, methodName, Arguments.words(inputs), Arguments.buffers(inputs))
            requireOk(error, "Execution failed for method: $methodName")
            Arguments.values(
                NativeRuntime.outputs(address, methodName),
                NativeRuntime.outputBuffers(address, methodName),
            )
        }

    /** Loads a method ahead of its first call. Throws ExecutorchRuntimeException when that fails. */
    public open fun loadMethod(methodName: String): Unit =
        whileOpen { address ->
            requireOk(NativeRuntime.loadMethod(address, methodName), "Failed to load method: $methodName")
        }

    /** The names of the program's methods. */
    public open fun getMethods(): Array<String> = whileOpen { NativeRuntime.methods(it) }

    /** What is known of a method. Throws IllegalArgumentException when the program has no such method. */
    public open fun getMethodMetadata(name: String): MethodMetadata =
        whileOpen { metadata[name] ?: throw IllegalArgumentException("the program has no method $name") }

    /** The same as [readLogBufferStatic]. */
    public open fun readLogBuffer(): Array<String>? = whileOpen { readLogBufferStatic() }

    /**
     * Frees the program; nothing happens when that was done before.
     *
     * Throws IllegalStateException while another thread runs it.
     */
    public open fun destroy() {
        check(lock.tryLock()) { "Cannot destroy module while method is executing" }
        try {
            program.close()
        } finally {
            lock.unlock()
        }
    }

    /** The same as [destroy]. */
    override fun close(): Unit = destroy()

    private inline fun <T> whileOpen(use: (Long) -> T): T =
        lock.withLock {
            try {
                use(program.address())
            } finally {
                Reference.reachabilityFence(this)
            }
        }

    public companion object {
        /** The whole file is read into memory of the process. */
        public const val LOAD_MODE_FILE: Int = 0

        /** The file is mapped: its pages stay the system's. */
        public const val LOAD_MODE_MMAP: Int = 1

        /** The file is mapped and locked into memory; a refusal is an error. */
        public const val LOAD_MODE_MMAP_USE_MLOCK: Int = 2

        /** The file is mapped and locked into memory; a refusal is ignored. */
        public const val LOAD_MODE_MMAP_USE_MLOCK_IGNORE_ERRORS: Int = 3

        private val cleaner: Cleaner = Cleaner.create()

        /**
         * Loads a program.
         *
         * numThreads: of the process's one pool of threads; 0 takes half of the processors. Another number than before
         * replaces the pool under every module that is loaded: keep to one number.
         *
         * Throws IllegalArgumentException when the path names no readable file, ExecutorchInvalidArgumentException when
         * the file is no program, UnsatisfiedLinkError when the native library is missing.
         */
        @JvmStatic
        @JvmOverloads
        public fun load(
            modelPath: String?,
            loadMode: Int = LOAD_MODE_FILE,
            numThreads: Int = 0,
        ): Module {
            ExecuTorchRuntime.validateFilePath(modelPath, "model path")
            return Module(modelPath!!, loadMode, numThreads)
        }

        /** The runtime's last messages; on this machine the errors of this thread's last call. */
        @JvmStatic
        public fun readLogBufferStatic(): Array<String>? = NativeRuntime.ready.loggedErrors()

        private fun loadProgram(
            path: String,
            loadMode: Int,
            numThreads: Int,
        ): Long {
            val program = NativeRuntime.ready.load(path, loadMode, numThreads)
            if (program < 0) {
                throw ExecutorchRuntimeException.makeExecutorchException(
                    ExecutorchRuntimeException.INVALID_ARGUMENT,
                    "$path cannot be loaded (error 0x${java.lang.Long.toHexString(-program)} of the runtime)",
                )
            }
            return program
        }

        private fun requireOk(
            error: Int,
            what: String,
        ) {
            if (error != ExecutorchRuntimeException.OK) {
                throw ExecutorchRuntimeException.makeExecutorchException(error, what)
            }
        }
    }
}
