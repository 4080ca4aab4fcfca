package ai.chainfed.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

class HiddenStatesTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val file by lazy { File(folder.root, "hidden") }

    private fun tensor(vararg values: Float): TensorView =
        TensorView.allocate(listOf(values.size)).also { it.floats().put(values) }

    private fun read(
        slots: SlotFile,
        slot: Int,
    ): List<Double> = valuesOf(tensor(0f, 0f).also { slots.read(slot, it) }).asList()

    @Test
    fun `slots keep what was written, also for the next process`() {
        SlotFile(file, 3, 8).use { slots ->
            slots.write(2, tensor(1f, 2f))
            slots.write(0, tensor(3f, 4f))
            assertEquals(listOf(1.0, 2.0), read(slots, 2))
        }
        SlotFile(file, 3, 8).use { slots ->
            assertEquals(listOf(3.0, 4.0), read(slots, 0))
            assertEquals(listOf(0.0, 0.0), read(slots, 1))
            assertEquals(listOf(1.0, 2.0), read(slots, 2))
            val second = tensor(0f)
            slots.readPart(2, 4, second.bytes)
            assertEquals(2f, second.floats().get(0), 0f)
        }
    }

    @Test
    fun `a file of another size is no file of these slots, and begins anew`() {
        assertFalse(SlotFile.exists(file, 3, 8))
        SlotFile(file, 3, 8).use { it.write(1, tensor(1f, 2f)) }
        assertTrue(SlotFile.exists(file, 3, 8))
        assertFalse(SlotFile.exists(file, 4, 8))
        SlotFile(file, 4, 8).use { assertEquals(listOf(0.0, 0.0), read(it, 1)) }
    }

    @Test
    fun `a slot beyond the last one is an error of the caller`() {
        SlotFile(file, 3, 8).use { slots ->
            for (slot in listOf(-1, 3)) {
                assertThrows(IndexOutOfBoundsException::class.java) { slots.write(slot, tensor(1f, 2f)) }
            }
        }
    }

    @Test
    fun `no order of batches overwrites what is still to be read`() {
        for (numBatches in 1..6) {
            // What each slot holds: (depth, batch). Depth 0 begins at base 1.
            val slots = arrayOfNulls<Pair<Int, Int>>(numBatches + 1)
            for (batch in 0 until numBatches) slots[batch + 1] = 0 to batch
            for (depth in 1..5) {
                val base = 1 - depth % 2
                val order = batchOrder(numBatches, base)
                assertEquals((0 until numBatches).toSet(), order.toSet())
                for (batch in order) {
                    assertEquals(depth - 1 to batch, slots[batch + 1 - base])
                    slots[batch + base] = depth to batch
                }
            }
        }
    }
}
