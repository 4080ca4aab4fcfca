package ai.chainfed.core

/**
 * The key that a device signs its results with, so that nobody else hands them in.
 *
 * Both members are called on the thread that works, from one thread at a time, and may block.
 */
public interface DeviceKeys {
    /**
     * SubjectPublicKeyInfo of an ECDSA key on P-256, in DER. The same at every call, until the device's data are
     * deleted.
     */
    public val publicKey: ByteArray

    /** The signature of [message]: ECDSA with SHA-256, in DER. */
    public fun sign(message: ByteArray): ByteArray
}
