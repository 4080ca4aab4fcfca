package ai.chainfed.executorch

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel

/**
 * What a program takes of the process's own memory (RssAnon) and of the system's (RssFile).
 *
 * The JVM's heap has one size and is all touched from the start (see the surefire settings), so it does not count.
 * Programs are those of `references.py`, of [ROWS] x [COLUMNS] float32, 64 MiB.
 */
class ModuleMemoryTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val row = EValue.from(Tensor.fromBlob(FloatArray(COLUMNS) { it.toFloat() }, longArrayOf(COLUMNS.toLong())))

    /** The JVM compiles, the runtime makes its pool. */
    @Before
    fun warmUp() = repeat(3) { load("widen").use { module -> module.forward(row) } }

    private fun load(
        name: String,
        mode: Int = Module.LOAD_MODE_MMAP,
    ): Module = Module.load(References.program(name), mode, 1)

    @Test
    fun `a mapped input is not copied`() {
        val mapped = mappedMatrix()
        val (anonymous, files) = Pair(memory("RssAnon"), memory("RssFile"))
        load("fold").use { module ->
            val found = module.forward(EValue.from(Tensor.fromBlob(mapped.asFloatBuffer(), SHAPE)))[0].toTensor()
            assertArrayEquals(FloatArray(COLUMNS) { it.toFloat() }, found.dataAsFloatArray, 0f)
            assertAtMost(4 * MIB, memory("RssAnon") - anonymous)
            assertAtLeast(MATRIX_BYTES - 4 * MIB, memory("RssFile") - files)
        }
    }

    @Test
    fun `the arena is the process's own while the module is open, and given back when it is closed`() {
        val before = memory("RssAnon")
        val module = load("widen")
        assertAtMost(4 * MIB, memory("RssAnon") - before)
        val found = module.forward(row)[0].toTensor().dataAsFloatArray
        assertEquals(2f * (COLUMNS - 1), found.last(), 0f)
        assertAtLeast(MATRIX_BYTES - 4 * MIB, memory("RssAnon") - before)
        module.close()
        assertAtMost(4 * MIB, memory("RssAnon") - before)
    }

    @Test
    fun `a mapped program stays in its file, a read one does not`() {
        for ((mode, own) in listOf(Module.LOAD_MODE_MMAP to 0L, Module.LOAD_MODE_FILE to MATRIX_BYTES)) {
            val (anonymous, files) = Pair(memory("RssAnon"), memory("RssFile"))
            load("keep", mode).use { module ->
                val found = module.forward(row)[0].toTensor().dataAsFloatArray
                assertEquals((ROWS - 1f) * COLUMNS + 2f * (COLUMNS - 1), found.last(), 0f)
                assertAtLeast(own - 4 * MIB, memory("RssAnon") - anonymous)
                assertAtMost(own + 4 * MIB, memory("RssAnon") - anonymous)
                assertAtLeast(MATRIX_BYTES - own - 4 * MIB, memory("RssFile") - files)
            }
            assertAtMost(4 * MIB, memory("RssAnon") - anonymous)
            assertAtMost(4 * MIB, memory("RssFile") - files)
        }
    }

    @Test
    fun `a locked program is locked while the module is open`() {
        val before = memory("VmLck")
        load("fold", Module.LOAD_MODE_MMAP_USE_MLOCK).use { assertAtLeast(1, memory("VmLck") - before) }
        load("fold", Module.LOAD_MODE_MMAP_USE_MLOCK_IGNORE_ERRORS).use { it.loadMethod("forward") }
        assertEquals(before, memory("VmLck"))
    }

    @Test
    fun `loading, running and closing again and again takes no more memory`() {
        val case = VectorCase.named("decoder/window_q2-0")
        val arguments = case.arguments(case.inputs())
        val cycle = { Module.load(case.file.path, Module.LOAD_MODE_MMAP, 1).use { it.forward(*arguments) } }
        repeat(WARM_CYCLES) { cycle() }
        System.gc()
        val before = memory("RssAnon")
        repeat(CYCLES) { cycle() }
        System.gc()
        assertAtMost(4 * MIB, memory("RssAnon") - before)
    }

    @Test
    fun `a module that nobody closes is freed with its object`() {
        val before = memory("RssAnon")
        repeat(8) { load("widen").forward(row) }
        val deadline = System.nanoTime() + 20_000_000_000
        while (memory("RssAnon") - before > MATRIX_BYTES / 2 && System.nanoTime() < deadline) {
            System.gc()
            Thread.sleep(20)
        }
        assertAtMost(MATRIX_BYTES / 2, memory("RssAnon") - before)
    }

    /** Row r, column c holds c - (ROWS - 1 - r), so that each column's largest value is its number. */
    private fun mappedMatrix() =
        RandomAccessFile(folder.newFile(), "rw").use { file ->
            val written = ByteBuffer.allocate(COLUMNS * Float.SIZE_BYTES).order(ByteOrder.nativeOrder())
            for (r in 0 until ROWS) {
                for (c in 0 until COLUMNS) written.putFloat(c * Float.SIZE_BYTES, (c - (ROWS - 1 - r)).toFloat())
                file.write(written.array())
            }
            file.channel.map(FileChannel.MapMode.READ_ONLY, 0, MATRIX_BYTES).order(ByteOrder.nativeOrder())
        }

    private fun assertAtMost(
        most: Long,
        bytes: Long,
    ) = assertTrue("${bytes / 1024} KiB, at most ${most / 1024} were expected", bytes <= most)

    private fun assertAtLeast(
        least: Long,
        bytes: Long,
    ) = assertTrue("${bytes / 1024} KiB, at least ${least / 1024} were expected", bytes >= least)

    private companion object {
        const val ROWS = 4096
        const val COLUMNS = 4096
        const val MATRIX_BYTES = ROWS.toLong() * COLUMNS * Float.SIZE_BYTES
        const val WARM_CYCLES = 500
        const val CYCLES = 1500
        val SHAPE = longArrayOf(ROWS.toLong(), COLUMNS.toLong())
    }
}
