package ai.chainfed.executorch

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.junit.runners.Parameterized
import org.pytorch.executorch.Module
import kotlin.math.abs

/** Every program of tests/vectors, on one thread: the expected outputs, and the bits that Python's runtime gives. */
@RunWith(Parameterized::class)
internal class VectorProgramsTest(
    private val case: VectorCase,
) {
    @Test
    fun `gives the expected outputs`() =
        forEachStep { step, outputs ->
            val expected = case.expected(step)
            assertEquals(expected.keys, outputs.keys)
            for ((name, tensor) in expected) {
                val found = outputs.getValue(name)
                assertArrayEquals(tensor.shape(), found.shape())
                val (wanted, given) = Pair(tensor.dataAsFloatArray, found.dataAsFloatArray)
                val counted = wanted.indices.filter(case.counted(name, tensor))
                assertTrue(name, counted.isNotEmpty())
                val error = counted.maxOf { abs(wanted[it] - given[it]) }
                val largest = counted.maxOf { abs(wanted[it]) }
                assertTrue("step $step, $name: off by $error of $largest", error <= case.tolerance * largest)
            }
        }

    @Test
    fun `gives the bits that Python gives`() =
        forEachStep { step, outputs ->
            val python = References.folder.resolve("${case.name}.$step.bin").readBytes()
            assertArrayEquals("step $step", python, bytes(outputs.values))
        }

    private fun forEachStep(check: (Int, Map<String, org.pytorch.executorch.Tensor>) -> Unit) {
        Module.load(case.file.path, Module.LOAD_MODE_MMAP, 1).use { module ->
            var inputs = case.inputs()
            for (step in 1..case.steps) {
                val outputs = case.run(module, inputs)
                check(step, outputs)
                inputs = case.next(inputs, outputs)
            }
        }
    }

    companion object {
        @JvmStatic
        @Parameterized.Parameters(name = "{0}")
        fun cases(): List<VectorCase> = VectorCase.all()
    }
}
