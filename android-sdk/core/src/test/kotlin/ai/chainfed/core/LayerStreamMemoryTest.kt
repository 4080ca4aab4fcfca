package ai.chainfed.core

import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer

/** A gigabyte of layers through the chain, in a heap of 64 MB. Run by `mvn verify -Dslow`. */
class LayerStreamMemoryTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val model = readManifest(File(SOURCE, "manifest.json").readBytes(), "The manifest")
    private val mappings = Mappings()
    private var mostMapped = 0L
    private val heap = ArrayList<Long>()

    /** Touches every page of the layer, and hands the hidden states on. */
    private inner class Touching : ProgramRuntime {
        override fun load(
            file: File,
            entry: ProgramEntry,
            name: String,
        ): Program =
            object : Program {
                private val h = FloatBuffer.allocate(entry.outputs[0].numElements)

                override fun run(inputs: Map<String, TensorView>): ProgramOutputs {
                    inputs["layer.w"]?.let { weights ->
                        val bytes = weights.whole()
                        for (page in 0 until bytes.capacity() step PAGE_BYTES) assertEquals(0, bytes.get(page).toInt())
                    }
                    mostMapped = maxOf(mostMapped, mappings.mappedBytes)
                    return ProgramOutputs(mapOf("h" to h))
                }

                override fun close() = Unit
            }
    }

    private fun layer(number: Int): File {
        val file = folder.newFile("layer $number")
        val header = "{\"w\":{\"dtype\":\"F32\",\"shape\":[$LAYER_FLOATS],\"data_offsets\":[0,$LAYER_BYTES]}}"
        val length = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(header.length.toLong()).array()
        file.writeBytes(length + header.toByteArray())
        RandomAccessFile(file, "rw").use { it.setLength(file.length() + LAYER_BYTES) }
        return file
    }

    private fun note() {
        System.gc()
        heap += Runtime.getRuntime().run { totalMemory() - freeMemory() }
    }

    @Test
    fun `no more than two layers are mapped, and the heap stays flat`() =
        runBlocking {
            assertTrue("the heap is ${Runtime.getRuntime().maxMemory()}", Runtime.getRuntime().maxMemory() <= 64 shl 20)
            val manifest = model.copy(model = model.model.copy(numLayers = NUM_LAYERS))
            val weights = (0 until NUM_LAYERS).associate { Manifest.layerFile(it) to layer(it) }
            val files = model.files.keys.associateWith { File(SOURCE, it) } + weights
            val state = File(folder.root, "state")
            val zeros =
                manifest.stateShapes().mapValues { (_, shape) ->
                    HeapTensor(shape, FloatArray(shape.fold(1, Int::times)))
                }
            writeTensors(state, zeros)
            val rows = 4 * model.batchSize
            val ids = IntArray(rows * model.seqLen)
            val data = TokenData(ids, IntArray(rows) { model.seqLen }, IntArray(rows), model.seqLen, model.batchSize)
            Journal(folder.newFolder(), mapOf("assignment" to "a")).use { journal ->
                mappings.Scope().use { scope ->
                    val bundle = DeviceBundle(manifest, "", files, Touching())
                    val pieces = ModelState(manifest, mapOf("all" to Shard(state, scope)))
                    val checkpoint: suspend (String) -> Unit = { if (it.startsWith("layer")) note() }
                    val work = Work(bundle, pieces, data, journal, 1, null, mappings, {}, checkpoint)
                    Chain(work, null).use { it.advanceTo(NUM_LAYERS) }
                }
            }
            assertEquals(NUM_LAYERS, heap.size)
            assertTrue("$heap", heap.drop(2).all { it - heap[1] < MEGA })
            assertTrue("$mostMapped", mostMapped in LAYER_BYTES + 1L..2L * LAYER_BYTES + MEGA)
        }

    private companion object {
        val SOURCE = File(Vectors.folder, "bundles/encoder/bundle")
        const val NUM_LAYERS = 32
        const val LAYER_BYTES = 1 shl 25
        const val LAYER_FLOATS = LAYER_BYTES / 4
        const val PAGE_BYTES = 4096
        const val MEGA = 1L shl 20
    }
}
