package ai.chainfed.core

import ai.chainfed.json.JsonObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File
import java.security.KeyFactory
import java.security.Signature
import java.security.SignatureException
import java.security.spec.X509EncodedKeySpec

/** What a device signs, against tests/vectors/signatures.json. */
class SignedTextTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val vectors = Vectors.read("signatures.json")
    private val publicKey = bytesOfHex(vectors["public_key"]!!.string())
    private val file by lazy { File(folder.root, "device-key") }

    private fun textOf(case: JsonObject): ByteArray {
        val id = case["assignment_id"]!!.string()
        return when (val kind = case["kind"]!!.string()) {
            "update" -> signedUpdate(id, case["sha256"]!!.string(), case["num_examples"]!!.long())

            "profile" -> {
                val statistics = sha256().digest(bytesOfHex(case["statistics"]!!.string())).toHex()
                val scores = case["scores"]!!.numbers()
                signedProfile(id, statistics, Outcome.Profile(case["num_examples"]!!.long(), scores, statistics))
            }

            "evaluation" -> {
                val lossSum = case["loss_sum"]!!.number()
                val numCorrect = case["num_correct"]!!.long()
                signedEvaluation(id, Outcome.Evaluation(case["num_examples"]!!.long(), numCorrect, lossSum))
            }

            else -> error("no such kind: $kind")
        }
    }

    private fun holds(
        key: ByteArray,
        text: ByteArray,
        signature: ByteArray,
    ): Boolean =
        try {
            Signature.getInstance("SHA256withECDSA").run {
                initVerify(KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(key)))
                update(text)
                verify(signature)
            }
        } catch (_: SignatureException) {
            false
        }

    @Test
    fun `texts are those of the vectors`() {
        val cases = vectors["cases"]!!.list().map { it as JsonObject }
        assertEquals(setOf("update", "profile", "evaluation"), cases.map { it["kind"]!!.string() }.toSet())
        for (case in cases) {
            val text = textOf(case)
            assertEquals(case["text"]!!.string(), String(text))
            assertTrue(holds(publicKey, text, bytesOfHex(case["valid"]!!.string())))
        }
    }

    @Test
    fun `a key is made once and signs what its public half verifies`() {
        val keys = SoftwareDeviceKeys(file)
        val text = "a text".toByteArray()
        val signature = keys.sign(text)
        assertTrue(holds(keys.publicKey, text, signature))
        assertFalse(holds(keys.publicKey, text + 10, signature))
        assertArrayEquals(keys.publicKey, SoftwareDeviceKeys(file).publicKey)
        assertFalse(holds(SoftwareDeviceKeys(File(folder.root, "other")).publicKey, text, signature))
    }

    @Test
    fun `the vectors' key gives signatures that its public half verifies`() {
        file.writeText(vectors["public_key"]!!.string() + "\n" + vectors["private_key"]!!.string() + "\n")
        val keys = SoftwareDeviceKeys(file)
        assertArrayEquals(publicKey, keys.publicKey)
        assertTrue(holds(publicKey, "x".toByteArray(), keys.sign("x".toByteArray())))
    }

    @Test
    fun `a damaged key file is refused`() {
        for (content in listOf("", "00\n", "zz\nzz\n", "00\n00\n", "${publicKey.toHex()}\n\n")) {
            file.writeText(content)
            val refusal = assertThrows(ChainFedException.BadInput::class.java) { SoftwareDeviceKeys(file).publicKey }
            assertEquals(
                "The device's signing key in device-key cannot be used; delete the device's data.",
                refusal.message,
            )
        }
    }
}
