package ai.chainfed.core

/**
 * Every failure that can be expected, as one sealed tree that matches the coordinator's (`docs/errors.md`).
 *
 * The message is one sentence: what was wrong, where, and what to do. It never says anything about an example.
 *
 * @property code the name under which the failure travels between device and coordinator.
 * @property exitCode what a command line ends with.
 */
public sealed class ChainFedException(
    message: String,
    cause: Throwable? = null,
    public val code: String,
    public val exitCode: Int,
) : Exception(message, cause) {
    /** An option, a data source or a request that cannot be used. */
    public class BadInput(
        message: String,
        cause: Throwable? = null,
    ) : ChainFedException(message, cause, "BAD_INPUT", 3)

    /** A bundle, a program or a piece of the model state that is damaged, incomplete or made for another version. */
    public class BadBundle(
        message: String,
        cause: Throwable? = null,
    ) : ChainFedException(message, cause, "BUNDLE", 5)

    /** A coordinator that did not answer for longer than the patience. */
    public class Unreachable(
        message: String,
        cause: Throwable? = null,
    ) : ChainFedException(message, cause, "UNREACHABLE", 7)

    /** A state folder in which another device works. */
    public class InUse(
        message: String,
        cause: Throwable? = null,
    ) : ChainFedException(message, cause, "ADDRESS_IN_USE", 8)

    /** A memory budget that the work does not fit into. */
    public class MemoryBudget(
        message: String,
    ) : ChainFedException(message, null, "MEMORY_BUDGET", 9)

    /** A device, an assignment or a blob that the coordinator does not know. */
    public class NotFound(
        message: String,
        cause: Throwable? = null,
    ) : ChainFedException(message, cause, "NOT_FOUND", 12)

    /** A request that the coordinator's present state does not allow. */
    public class Conflict(
        message: String,
        cause: Throwable? = null,
    ) : ChainFedException(message, cause, "CONFLICT", 13)

    /** A result that the coordinator refused. */
    public class UpdateRejected(
        message: String,
        cause: Throwable? = null,
    ) : ChainFedException(message, cause, "UPDATE_REJECTED", 14)

    /** Training that left the finite numbers. */
    public class NotFinite(
        message: String,
    ) : ChainFedException(message, null, "NOT_FINITE", 15)

    /** A device that the coordinator does not take: its enrolment token or a signature is missing or wrong. */
    public class Unauthorized(
        message: String,
        cause: Throwable? = null,
    ) : ChainFedException(message, cause, "UNAUTHORIZED", 17)

    /** No room on the device's storage. */
    public class StorageFull(
        message: String,
        cause: Throwable? = null,
    ) : ChainFedException(message, cause, "BAD_INPUT", 3)

    /** A failure that the coordinator named by a code which this version does not know, or did not name at all. */
    public class Other(
        message: String,
        cause: Throwable? = null,
        code: String = "CHAINFED_ERROR",
    ) : ChainFedException(message, cause, code, 1)

    public companion object {
        /** The failure that the coordinator named by [code]. */
        @JvmStatic
        public fun of(
            code: String,
            message: String,
            cause: Throwable? = null,
        ): ChainFedException =
            when (code) {
                "BAD_INPUT" -> BadInput(message, cause)
                "BUNDLE" -> BadBundle(message, cause)
                "UNREACHABLE" -> Unreachable(message, cause)
                "ADDRESS_IN_USE" -> InUse(message, cause)
                "MEMORY_BUDGET" -> MemoryBudget(message)
                "NOT_FOUND" -> NotFound(message, cause)
                "CONFLICT" -> Conflict(message, cause)
                "UPDATE_REJECTED" -> UpdateRejected(message, cause)
                "NOT_FINITE" -> NotFinite(message)
                "UNAUTHORIZED" -> Unauthorized(message, cause)
                else -> Other(message, cause, code)
            }
    }
}
