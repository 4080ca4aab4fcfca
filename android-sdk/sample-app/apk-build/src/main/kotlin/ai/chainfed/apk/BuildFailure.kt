package ai.chainfed.apk

/** A build step that cannot be done; the message is one sentence for the developer. */
class BuildFailure(
    message: String,
    cause: Throwable? = null,
) : Exception(message, cause)
