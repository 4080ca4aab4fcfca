package ai.chainfed.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Test

/** The draws of tests/vectors/order.json. */
class OrderTest {
    private val vectors = Vectors.read("order.json")

    @Test
    fun `the generator`() {
        for (case in vectors["next"]!!.list()) {
            val generator = SplitMix64(case["seed"].unsigned())
            for (value in case["values"].list()) assertEquals(value.unsigned(), generator.next())
        }
    }

    @Test
    fun `bounded draws`() {
        var inRange = 0
        for (case in vectors["below"]!!.list()) {
            val bound = java.lang.Long.parseUnsignedLong(case["bound"].string())
            if (bound !in 1..Int.MAX_VALUE) continue
            val generator = SplitMix64(case["seed"].unsigned())
            for (value in case["values"].list()) {
                assertEquals(value.unsigned(), generator.below(bound.toInt()).toLong())
                inRange++
            }
        }
        assert(inRange > 20)
    }

    @Test
    fun permutations() {
        for (case in vectors["permutation"]!!.list()) {
            val order = permutation(case["count"].long().toInt(), SplitMix64(case["seed"].unsigned()))
            assertArrayEquals(case["order"].ints(), order)
        }
    }

    @Test
    fun `training steps`() {
        for (case in vectors["batches"]!!.list()) {
            val (rows, size, epochs) = listOf("num_examples", "batch_size", "epochs").map { case[it].long().toInt() }
            val steps = trainingSteps(rows, size, epochs, case["seed"].unsigned())
            assertEquals(case["steps"].list().map { it.ints().toList() }, steps.map { it.toList() })
        }
    }
}
