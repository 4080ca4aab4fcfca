package org.pytorch.executorch

/** The runtime refused or failed; [errorCode] is one of this class's constants, which are those of the runtime. */
public open class ExecutorchRuntimeException(
    public val errorCode: Int,
    details: String?,
) : RuntimeException(message(errorCode, details)) {
    public constructor(errorCode: Int, details: String?, cause: Throwable?) : this(errorCode, details) {
        if (cause != null) initCause(cause)
    }

    /** What the runtime logged as errors in this thread's last call, one a line; empty when there is nothing. */
    public fun getDetailedError(): String = logged().joinToString("") { "$it\n" }

    /** An input, or a file, that the runtime cannot take. */
    public class ExecutorchInvalidArgumentException(
        details: String?,
    ) : ExecutorchRuntimeException(INVALID_ARGUMENT, details)

    public companion object {
        public const val OK: Int = 0x00
        public const val INTERNAL: Int = 0x01
        public const val INVALID_STATE: Int = 0x02
        public const val END_OF_METHOD: Int = 0x03
        public const val ALREADY_LOADED: Int = 0x04

        public const val NOT_SUPPORTED: Int = 0x10
        public const val NOT_IMPLEMENTED: Int = 0x11
        public const val INVALID_ARGUMENT: Int = 0x12
        public const val INVALID_TYPE: Int = 0x13
        public const val OPERATOR_MISSING: Int = 0x14
        public const val REGISTRATION_EXCEEDING_MAX_KERNELS: Int = 0x15
        public const val REGISTRATION_ALREADY_REGISTERED: Int = 0x16

        public const val NOT_FOUND: Int = 0x20
        public const val MEMORY_ALLOCATION_FAILED: Int = 0x21
        public const val ACCESS_FAILED: Int = 0x22
        public const val INVALID_PROGRAM: Int = 0x23
        public const val INVALID_EXTERNAL_DATA: Int = 0x24
        public const val OUT_OF_RESOURCES: Int = 0x25

        public const val DELEGATE_INVALID_COMPATIBILITY: Int = 0x30
        public const val DELEGATE_MEMORY_ALLOCATION_FAILED: Int = 0x31
        public const val DELEGATE_INVALID_HANDLE: Int = 0x32

        private const val LOGGED_CHARACTERS = 2048

        /** The exception of an error code; its message ends with what [getDetailedError] gives. */
        @JvmStatic
        public fun makeExecutorchException(
            errorCode: Int,
            details: String?,
        ): RuntimeException {
            val logged = logged().joinToString("; ").takeLast(LOGGED_CHARACTERS)
            val all = if (logged.isEmpty()) details else "${details.orEmpty()}; logged: $logged"
            return if (errorCode == INVALID_ARGUMENT) {
                ExecutorchInvalidArgumentException(all)
            } else {
                ExecutorchRuntimeException(errorCode, all)
            }
        }

        private fun message(
            errorCode: Int,
            details: String?,
        ): String = "ExecuTorch error 0x${Integer.toHexString(errorCode)}: ${details ?: "no details"}"

        // No log is no reason to hide the error itself.
        private fun logged(): List<String> =
            try {
                Module.readLogBufferStatic().orEmpty().toList()
            } catch (_: UnsatisfiedLinkError) {
                emptyList()
            }
    }
}
