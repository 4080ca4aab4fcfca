package ai.chainfed.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class OutcomeTest {
    @get:Rule
    val folder = TemporaryFolder()

    private fun journal(): Journal = Journal(folder.root, mapOf("assignment" to "a"))

    @Test
    fun `every outcome is found again as it was, to the last bit`() {
        val outcomes =
            listOf(
                Outcome.Profile(3, listOf(0.1, 1.0 / 3, 5e-324), "f".repeat(64)),
                Outcome.Update(Long.MAX_VALUE, 7, 0.1 + 0.2, -0.0, 1e300, 2.0 / 3, "0".repeat(64)),
                Outcome.Evaluation(5, 4, Math.PI),
            )
        for (outcome in outcomes) {
            journal().use { journal ->
                assertNull(findOutcome(journal))
                recordOutcome(journal, outcome)
            }
            journal().use { journal ->
                assertEquals(outcome, findOutcome(journal))
                journal.discard()
            }
        }
    }

    @Test
    fun `a result that is not finite is refused by name`() {
        for (value in listOf(Float.NaN, Float.NEGATIVE_INFINITY)) {
            val tensors = mapOf("adapters.0.up" to HeapTensor(listOf(2), floatArrayOf(1f, value)))
            val refusal =
                journal().use { assertThrows(ChainFedException.NotFinite::class.java) { writeResult(it, tensors) } }
            assertEquals("The result for adapters.0.up is not finite; lower the learning rate.", refusal.message)
        }
    }

    @Test
    fun `a result that was changed is not handed in`() {
        journal().use { journal ->
            val sha256 = writeResult(journal, mapOf("w" to HeapTensor(listOf(1), floatArrayOf(1f))))
            assertEquals(sha256, sha256Of(resultFile(journal, sha256)))
            resultFile(journal, sha256).appendBytes(byteArrayOf(0))
            assertThrows(ChainFedException.BadBundle::class.java) { resultFile(journal, sha256) }
            journal.path("tensors").delete()
            assertThrows(ChainFedException.BadBundle::class.java) { resultFile(journal, sha256) }
        }
    }
}
