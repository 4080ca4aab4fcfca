package ai.chainfed.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File
import java.security.KeyFactory
import java.security.Signature
import java.security.interfaces.ECPublicKey
import java.security.spec.X509EncodedKeySpec

/** The software key, and the texts that are signed. */
class DeviceKeysTest {
    @get:Rule val folder = TemporaryFolder()

    private fun file() = File(folder.root, "key")

    private fun verifies(
        publicKey: ByteArray,
        message: ByteArray,
        signature: ByteArray,
    ): Boolean =
        Signature.getInstance("SHA256withECDSA").run {
            initVerify(KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(publicKey)))
            update(message)
            verify(signature)
        }

    @Test fun `a signature verifies under the public key, of the same message alone`() {
        val keys = SoftwareDeviceKeys(file())
        val signature = keys.sign("message".toByteArray())

        assertTrue(verifies(keys.publicKey, "message".toByteArray(), signature))
        assertEquals(false, verifies(keys.publicKey, "massage".toByteArray(), signature))
    }

    @Test fun `the key is one of P-256 and is kept`() {
        val first = SoftwareDeviceKeys(file())
        val key = KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(first.publicKey)) as ECPublicKey
        assertEquals(256, key.params.curve.field.fieldSize)

        val again = SoftwareDeviceKeys(file())

        assertArrayEquals(first.publicKey, again.publicKey)
        assertTrue(verifies(first.publicKey, byteArrayOf(1), again.sign(byteArrayOf(1))))
    }

    @Test fun `a damaged file is said to be one`() {
        for (damaged in listOf("", "zz\nzz\n", "00\n", "00\n00\n")) {
            file().writeText(damaged)
            val error = runCatching { SoftwareDeviceKeys(file()).publicKey }.exceptionOrNull()
            assertTrue(
                "$damaged: $error",
                error is ChainFedException.BadInput && "delete the device's data" in error.message!!,
            )
        }
    }

    @Test fun `texts are the protocol's`() {
        val profile = Outcome.Profile(7, listOf(0.5, 1.0), "ignored")
        assertEquals(
            "chainfed-profile\nabc\nfeed\n7\n3fe0000000000000\n3ff0000000000000",
            String(signedProfile("abc", "feed", profile)),
        )
        assertEquals("chainfed-update\nabc\nfeed\n9", String(signedUpdate("abc", "feed", 9)))
        val evaluation = Outcome.Evaluation(10, 4, -0.0)
        assertEquals("chainfed-evaluation\nabc\n10\n4\n8000000000000000", String(signedEvaluation("abc", evaluation)))
    }
}
