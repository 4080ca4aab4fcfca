package ai.chainfed.tokenizer

/** A tokenizer file that cannot be used, or a text that it has no tokens for; the message is one sentence. */
public class TokenizerException internal constructor(
    message: String,
    cause: Throwable? = null,
) : Exception(message, cause) {
    internal companion object {
        /** A file that says what it must not. */
        fun damaged(
            reason: String,
            cause: Throwable? = null,
        ): TokenizerException =
            TokenizerException("The tokenizer file cannot be read: $reason; export the bundle again.", cause)

        /** A file that asks for what is not implemented here. */
        fun unsupported(what: String): TokenizerException =
            TokenizerException(
                "The tokenizer file asks for $what, which is not supported on devices; export a model with another " +
                    "tokenizer, or give rows of token ids.",
            )

        /** A text that the tokenizer cannot encode. */
        fun unencodable(reason: String): TokenizerException = TokenizerException("The text has no tokens: $reason.")
    }
}
