package ai.chainfed.core

import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

/** The frozen chain against the plainest way to compute it: one batch after the other, each through all layers. */
class ChainTest {
    @get:Rule
    val folder = TemporaryFolder()

    private lateinit var model: TestModel

    @Before
    fun model() {
        model = TestModel("encoder", folder.root)
    }

    private val numLayers get() = model.manifest.model.numLayers

    /** Hidden states by depth and batch. */
    private suspend fun oracle(): List<List<DoubleArray>> =
        model.withWork("oracle") { work ->
            model.mappings.Scope().use { scope ->
                val depths = List(numLayers + 1) { ArrayList<DoubleArray>() }
                for (batch in 0 until work.data.numBatches) {
                    val rows = work.data.storedBatch(batch)
                    val mask = mapOf("mask" to work.data.mask(rows))
                    val h = TensorView.allocate(work.hiddenShape)
                    val ids = mapOf("input_ids" to work.data.inputIds(rows))
                    work.bundle.program("embed").use { h.put(it.run(work.bundle.embeddings(scope) + ids + mask)) }
                    depths[0] += valuesOf(h)
                    for (layer in 0 until numLayers) {
                        val weights = work.bundle.blockWeights(layer, scope) + work.state.adapter(layer)
                        work.bundle.program("block").use { h.put(it.run(weights + mask + ("h" to h))) }
                        depths[layer + 1] += valuesOf(h)
                    }
                }
                depths
            }
        }

    private fun TensorView.put(outputs: ProgramOutputs) {
        floats().put(outputs.floats("h"))
    }

    private fun assertDepth(
        expected: List<DoubleArray>,
        chain: Chain,
        depth: Int,
        shape: List<Int>,
    ) {
        val h = TensorView.allocate(shape)
        expected.forEachIndexed { batch, values ->
            chain.view(depth).read(batch, h)
            assertArrayEquals("depth $depth, batch $batch", values, valuesOf(h), 0.0)
        }
    }

    @Test
    fun `every depth holds what its layers give`() =
        runBlocking {
            val expected = oracle()
            model.withWork("straight") { work ->
                Chain(work, null).use { chain ->
                    assertEquals(-1, chain.depth)
                    for (depth in 0..numLayers) {
                        chain.advanceTo(depth)
                        assertEquals(depth, chain.depth)
                        assertDepth(expected[depth], chain, depth, work.hiddenShape)
                    }
                    val refusal = assertThrows(IllegalArgumentException::class.java) { chain.view(1) }
                    assertEquals("depth 1 is overwritten, the chain stands at 5", refusal.message)
                }
            }
        }

    @Test
    fun `rows are found where their batches put them`() =
        runBlocking {
            val expected = oracle()[3]
            model.withWork("rows") { work ->
                Chain(work, null).use { chain ->
                    chain.advanceTo(3)
                    val rows = intArrayOf(6, 0, 4)
                    val target = TensorView.allocate(work.hiddenShape)
                    chain.view(3).readRows(rows, target)
                    val rowSize = target.numElements / rows.size
                    val wanted =
                        rows.flatMap { row ->
                            val start = row % work.data.batchSize * rowSize
                            expected[row / work.data.batchSize].asList().subList(start, start + rowSize)
                        }
                    assertEquals(wanted, valuesOf(target).asList())
                }
            }
        }

    @Test
    fun `killed after any batch it ends with the same bytes and computes no batch that was journalled`() =
        runBlocking {
            val expected = oracle()
            model.runtime.runs.clear()
            var kills = 0
            var done = false
            while (!done) {
                var calls = 0
                try {
                    model.withWork("killed", checkpoint = { if (++calls == 3) throw Killed() }) { work ->
                        Chain(work, null).use { chain ->
                            chain.advanceTo(numLayers)
                            assertDepth(expected[numLayers], chain, numLayers, work.hiddenShape)
                        }
                    }
                    done = true
                } catch (_: Killed) {
                    kills++
                }
            }
            assertTrue("$kills", kills > 5)
            val numBatches = model.data().numBatches
            val perProgram = model.runtime.runs.groupingBy { it }.eachCount()
            assertEquals(mapOf("embed" to numBatches, "block" to numLayers * numBatches), perProgram)
        }

    @Test
    fun `killed between writing a batch and journalling it it ends with the same bytes`() =
        runBlocking {
            val expected = oracle()
            val seen = ArrayList<Pair<Int, Int>>()
            var done = false
            while (!done) {
                val onBatch: OnBatch = { depth, batch, _, _ ->
                    if (depth to batch !in seen) {
                        seen += depth to batch
                        throw Killed()
                    }
                }
                try {
                    model.withWork("killed") { work ->
                        Chain(work, null, onBatch).use { chain ->
                            chain.advanceTo(numLayers)
                            assertDepth(expected[numLayers], chain, numLayers, work.hiddenShape)
                        }
                    }
                    done = true
                } catch (_: Killed) {
                    continue
                }
            }
            assertEquals((numLayers + 1) * model.data().numBatches, seen.size)
        }

    @Test
    fun `a kept depth is computed once, whatever comes after it`() =
        runBlocking {
            val expected = oracle()
            val kept = KeptDepth(2, File(folder.root, "kept"), model.data().numBatches)
            for (name in listOf("first", "second")) {
                model.runtime.runs.clear()
                model.withWork(name, kept) { work ->
                    Chain(work, kept).use { chain ->
                        if (name == "second") assertEquals(2, chain.depth)
                        for (depth in 2..numLayers) {
                            chain.advanceTo(depth)
                            assertDepth(expected[2], chain, 2, work.hiddenShape)
                            assertDepth(expected[depth], chain, depth, work.hiddenShape)
                        }
                    }
                }
                val layers = if (name == "first") numLayers else numLayers - 2
                assertEquals(layers * kept.numBatches, model.runtime.runs.count { it == "block" })
                assertEquals(name == "first", "embed" in model.runtime.runs)
            }
        }

    @Test
    fun `a kept depth appears only when it is whole`() =
        runBlocking {
            val expected = oracle()
            val kept = KeptDepth(1, File(folder.root, "kept"), model.data().numBatches)
            var calls = 0
            var done = false
            while (!done) {
                try {
                    model.withWork("killed", kept, checkpoint = { if (++calls % 3 == 0) throw Killed() }) { work ->
                        Chain(work, kept).use { it.advanceTo(1) }
                    }
                    done = true
                } catch (_: Killed) {
                    val passes = model.journal("killed").use { it.find("pass").size }
                    assertTrue("$passes", !kept.file.exists() || passes == 2 * kept.numBatches)
                }
            }
            assertTrue(kept.file.exists())
            assertFalse(File(folder.root, "killed/kept").exists())
            model.withWork("other", kept) { work ->
                Chain(work, kept).use { assertDepth(expected[1], it, 1, work.hiddenShape) }
            }
        }
}
