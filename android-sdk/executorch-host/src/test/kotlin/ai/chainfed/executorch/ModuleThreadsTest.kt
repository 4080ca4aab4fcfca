package ai.chainfed.executorch

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.pytorch.executorch.Module
import java.io.File
import java.util.concurrent.Callable
import java.util.concurrent.Executors

class ModuleThreadsTest {
    @Test
    fun `two threads with a module each get their own results`() {
        val pool = Executors.newFixedThreadPool(2)
        try {
            val cases = listOf("encoder/window_q2-0", "decoder/window_q2-0").map(VectorCase::named)
            pool.invokeAll(cases.map { case -> Callable { runOften(case) } }).forEach { it.get() }
        } finally {
            pool.shutdown()
        }
    }

    private fun runOften(case: VectorCase) {
        val python = References.folder.resolve("${case.name}.1.bin").readBytes()
        val inputs = case.inputs()
        Module.load(case.file.path, Module.LOAD_MODE_MMAP, 1).use { module ->
            repeat(1000) { assertArrayEquals(python, bytes(case.run(module, inputs).values)) }
        }
    }

    @Test
    fun `the number of threads is that of the last load`() {
        val case = VectorCase.named("encoder/block-0")
        val (many, one) =
            listOf(9, 1).map { threads ->
                Module.load(case.file.path, Module.LOAD_MODE_MMAP, threads).use { module ->
                    assertTrue(case.run(module, case.inputs()).isNotEmpty())
                    File("/proc/self/task").list()!!.size
                }
            }
        // The JVM may start a thread of its own in between.
        assertTrue("$many and $one threads", many - one in 6..10)
    }
}
