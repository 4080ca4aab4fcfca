package ai.chainfed.core

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.Signature
import java.security.spec.PKCS8EncodedKeySpec
import java.security.spec.X509EncodedKeySpec

/** `tests/vectors/signatures.json`: the texts that are signed, and which signatures hold. */
class SignatureVectorsTest {
    private val vectors = Vectors.read("signatures.json")
    private val cases = (vectors["cases"] as JsonList).values.map { it as JsonObject }

    private fun JsonObject.text(key: String): String = get(key)!!.string()

    private fun JsonObject.whole(key: String): Long = get(key)!!.long()

    private fun verifies(
        text: ByteArray,
        signature: ByteArray,
    ): Boolean =
        try {
            Signature.getInstance("SHA256withECDSA").run {
                initVerify(
                    KeyFactory
                        .getInstance(
                            "EC",
                        ).generatePublic(X509EncodedKeySpec(bytesOfHex(vectors.text("public_key")))),
                )
                update(text)
                verify(signature)
            }
        } catch (_: GeneralSecurityException) {
            false
        }

    private fun textOf(case: JsonObject): ByteArray {
        val id = case.text("assignment_id")
        return when (val kind = case.text("kind")) {
            "update" -> signedUpdate(id, case.text("sha256"), case.whole("num_examples"))

            "evaluation" -> {
                val loss = (case["loss_sum"] as JsonNumber).asDouble!!
                signedEvaluation(id, Outcome.Evaluation(case.whole("num_examples"), case.whole("num_correct"), loss))
            }

            "profile" -> {
                val scores = (case["scores"] as JsonList).values.map { (it as JsonNumber).asDouble!! }
                val statistics = sha256().digest(bytesOfHex(case.text("statistics"))).toHex()
                signedProfile(id, statistics, Outcome.Profile(case.whole("num_examples"), scores, statistics))
            }

            else -> error("the vectors have a kind that this test does not know: $kind")
        }
    }

    @Test fun `texts are the same, byte for byte`() {
        assertEquals(setOf("update", "evaluation", "profile"), cases.map { it.text("kind") }.toSet())
        for (case in cases) assertEquals(case.text("text"), String(textOf(case)))
    }

    @Test fun `what holds and what does not`() {
        for (case in cases) {
            assertTrue(case.text("text"), verifies(textOf(case), bytesOfHex(case.text("valid"))))
            for (invalid in (case["invalid"] as JsonList).values.map { it as JsonObject }) {
                val why = "${case.text("kind")}: ${invalid.text("why")}"
                assertFalse(why, verifies(textOf(case), bytesOfHex(invalid.text("signature"))))
            }
        }
    }

    @Test fun `the vectors' private key signs what their public key verifies`() {
        val key =
            KeyFactory
                .getInstance(
                    "EC",
                ).generatePrivate(PKCS8EncodedKeySpec(bytesOfHex(vectors.text("private_key"))))
        val text = textOf(cases.first())
        val signature =
            Signature.getInstance("SHA256withECDSA").run {
                initSign(key)
                update(text)
                sign()
            }
        assertTrue(verifies(text, signature))
    }
}
