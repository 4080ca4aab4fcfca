package org.pytorch.executorch

import ai.chainfed.executorch.NativeRuntime
import java.io.File

/** What the runtime of this process knows. */
public class ExecuTorchRuntime private constructor() {
    public companion object {
        private val runtime = ExecuTorchRuntime()

        /** The process's one runtime. */
        @JvmStatic
        public fun getRuntime(): ExecuTorchRuntime = runtime

        /** Throws IllegalArgumentException, naming [description], unless [path] names a file that can be read. */
        @JvmStatic
        public fun validateFilePath(
            path: String?,
            description: String,
        ) {
            requireNotNull(path) { "Cannot load $description: path is null" }
            val file = File(path)
            require(file.exists()) { "Cannot load $description: path does not exist: $path" }
            require(file.isFile) { "Cannot load $description: path is not a file: $path" }
            require(file.canRead()) { "Cannot load $description: path is not readable: $path" }
        }

        /** The names of all kernels, such as `aten::add.out`. */
        @JvmStatic
        public fun getRegisteredOps(): Array<String> = NativeRuntime.ready.registeredOperators()

        /** The names of all backends, such as `XnnpackBackend`. */
        @JvmStatic
        public fun getRegisteredBackends(): Array<String> = NativeRuntime.ready.registeredBackends()
    }
}
