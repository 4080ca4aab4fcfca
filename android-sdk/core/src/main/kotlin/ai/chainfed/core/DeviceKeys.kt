package ai.chainfed.core

/**
 * The key that a device signs its results with, so that nobody else hands them in.
 *
 * Both members are called on the thread that works, from one thread at a time, and may block. What they throw ends the
 * attempt, which is tried again later. A [ChainFedException] is told as it is, and an assignment that is under way is
 * given back. Of another exception only the type is told, and the assignment goes on at the next attempt.
 */
public interface DeviceKeys {
    /**
     * SubjectPublicKeyInfo of an ECDSA key on P-256, in DER. The same at every call, until the device's data are
     * deleted.
     */
    @get:Throws(ChainFedException::class)
    public val publicKey: ByteArray

    /** The signature of [message]: ECDSA with SHA-256, in DER. */
    @Throws(ChainFedException::class)
    public fun sign(message: ByteArray): ByteArray
}
