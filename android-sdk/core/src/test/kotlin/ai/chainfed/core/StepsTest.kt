package ai.chainfed.core

import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.nio.FloatBuffer

/** A training program that counts: each step adds one to what it carries. */
class StepsTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val weight = TensorSpec("trainable.w", listOf(2), TensorType.FLOAT32)
    private val momentum = TensorSpec("state.m", emptyList(), TensorType.FLOAT32)
    private val entry =
        ProgramEntry(
            "programs/count.pte",
            listOf(weight, momentum, TensorSpec("x", emptyList(), TensorType.FLOAT32)),
            listOf(weight, momentum, TensorSpec("loss", emptyList(), TensorType.FLOAT32)),
        )

    private class Counting(
        private val loss: (Float) -> Float,
    ) : Program {
        override fun run(inputs: Map<String, TensorView>): ProgramOutputs {
            val w = inputs.getValue("trainable.w").floats()
            val m = inputs.getValue("state.m").floats()
            return ProgramOutputs(
                mapOf(
                    "trainable.w" to FloatBuffer.wrap(floatArrayOf(w.get(0) + 1, w.get(1) + 2)),
                    "state.m" to FloatBuffer.wrap(floatArrayOf(m.get(0) + 10)),
                    "loss" to FloatBuffer.wrap(floatArrayOf(loss(inputs.getValue("x").floats().get(0)))),
                ),
            )
        }

        override fun close() = Unit
    }

    private fun train(
        model: TestModel,
        checkpoint: suspend (String) -> Unit = {},
        loss: (Float) -> Float = { it },
    ): Trained =
        runBlocking {
            val initial = TensorView.allocate(listOf(2)).also { it.floats().put(floatArrayOf(5f, 6f)) }
            model.withWork("steps", checkpoint = checkpoint) { work ->
                val steps = List(4) { intArrayOf(it) }
                val start = mapOf("trainable.w" to initial)
                runSteps(work, "w", Counting(loss), entry, start, steps, emptyMap(), listOf("loss")) { rows ->
                    mapOf("x" to TensorView.scalar(rows[0].toFloat()))
                }
            }
        }

    @Test
    fun `what is carried goes from step to step, from the initial values and zeros`() {
        val trained = train(TestModel("encoder", folder.root))
        assertEquals(listOf(9f, 14f), trained.tensors.getValue("trainable.w").asList())
        assertEquals(listOf(40f), trained.tensors.getValue("state.m").asList())
        assertEquals(List(4) { listOf(it.toDouble()) }, trained.measured)
    }

    @Test
    fun `killed after each step it counts on`() {
        val model = TestModel("encoder", folder.root)
        for (step in 1..4) {
            assertThrows(Killed::class.java) { train(model, checkpoint = { throw Killed() }) }
            val journalled = model.journal("steps").use { it.find("step").size }
            assertEquals(step, journalled)
        }
        assertEquals(listOf(9f, 14f), train(model).tensors.getValue("trainable.w").asList())
    }

    @Test
    fun `a step that was written but not journalled is done again from its own generation`() {
        val model = TestModel("encoder", folder.root)
        assertThrows(Killed::class.java) { train(model, checkpoint = { throw Killed() }) }
        val journal = model.journal("steps")
        journal.use { work ->
            CarriedState(work.path("."), "w", entry, model.mappings.Scope()).use { state ->
                // The process died while it stored step 1: half of generation 2 is other numbers.
                state.generation(2).getValue("trainable.w").floats().put(0, 99f)
            }
        }
        assertEquals(listOf(9f, 14f), train(model).tensors.getValue("trainable.w").asList())
    }

    @Test
    fun `a loss that is not finite is refused and leaves nothing behind`() {
        val model = TestModel("encoder", folder.root)
        for (bad in listOf(Float.NaN, Float.POSITIVE_INFINITY)) {
            val refusal =
                assertThrows(ChainFedException.NotFinite::class.java) {
                    train(model, loss = { if (it == 2f) bad else it })
                }
            assertEquals("The loss of step 3 is not finite; lower the learning rate.", refusal.message)
        }
        assertEquals(2, model.journal("steps").use { it.find("step").size })
    }

    @Test
    fun `only tensors that are input and output are carried`() {
        assertEquals(listOf("trainable.w", "state.m"), CarriedState.carried(entry).map { it.name })
    }

    @Test
    fun `an initial tensor that is shorter is filled up with zeros`() {
        val scope = Mappings().Scope()
        CarriedState(folder.root, "short", entry, scope).use { state ->
            state.fill(mapOf("trainable.w" to TensorView.scalar(3f)))
            assertEquals(listOf(3.0, 0.0), valuesOf(state.generation(0).getValue("trainable.w")).asList())
        }
    }
}
