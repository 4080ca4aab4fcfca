package ai.chainfed.core

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import java.io.Closeable
import java.io.File

/** A depth whose output goes to a file of its own: [file] appears, whole, when the depth is done. */
internal class KeptDepth(
    val depth: Int,
    val file: File,
    val numBatches: Int,
)

/** Called with (depth, batch, h, mask) before a batch is journalled; perhaps twice for one batch. */
internal typealias OnBatch = (depth: Int, batch: Int, h: TensorView, mask: TensorView) -> Unit

/**
 * The frozen chain: all batches through one layer, then all through the next (`docs/device.md` section 6). Resumes
 * where the journal ends. Nothing is computed before [advanceTo].
 */
internal class Chain(
    private val work: Work,
    kept: KeptDepth?,
    private val onBatch: OnBatch? = null,
) : Closeable {
    private val data = work.data
    private val shape = work.hiddenShape
    private val slotBytes = TensorSpec("h", shape, TensorType.FLOAT32).numBytes
    private val h = TensorView.allocate(shape)
    private val kept = kept?.takeIf { it.numBatches == data.numBatches || isKept(it) }
    private val done = HashMap<Int, Int>()
    private var hidden: SlotFile? = null
    private var keptFile: SlotFile? = null

    init {
        for (record in work.journal.find("pass")) {
            val (depth, batches) = (record as JsonList).values.map { it.whole().toInt() }
            done[depth] = batches
        }
    }

    /** The deepest output that is complete; -1 before the embeddings are done. */
    val depth: Int
        get() {
            val complete = done.filterValues { it == data.numBatches }.keys.maxOfOrNull { it } ?: -1
            return if (kept != null && isKept(kept)) maxOf(complete, kept.depth) else complete
        }

    /** Runs the passes that are missing up to [depth]. */
    suspend fun advanceTo(depth: Int) {
        publish()
        val first = this.depth + 1
        if (first == 0 && depth >= 0) embed()
        Blocks(work.bundle).use { blocks ->
            for (next in maxOf(first, 1)..depth) {
                work.checkpoint("layer $next of ${work.bundle.manifest.model.numLayers}")
                runLayer(next, blocks, prefetchNext = next < depth)
                publish()
            }
        }
    }

    /**
     * The output of a depth: the one that the chain stands at, or the kept one. IllegalArgumentException for another,
     * which a later layer has overwritten.
     */
    fun view(depth: Int): HiddenView {
        if (kept != null && depth == kept.depth) {
            val place = if (isKept(kept)) kept.file else work.journal.path(KEPT)
            val file = keptFile ?: SlotFile(place, kept.numBatches, slotBytes).also { keptFile = it }
            return HiddenView(file, 0, data.batchSize)
        }
        require(depth >= this.depth) { "depth $depth is overwritten, the chain stands at ${this.depth}" }
        return destination(depth)
    }

    override fun close() {
        hidden?.close()
        keptFile?.close()
        hidden = null
        keptFile = null
    }

    private suspend fun embed() {
        work.checkpoint("embeddings")
        work.mappings.Scope().use { scope ->
            work.bundle.program("embed").use { program ->
                val feed = work.bundle.embeddings(scope)
                pass(0, 0 until data.numBatches) { batch, mask ->
                    program.run(feed + ("input_ids" to data.inputIds(data.storedBatch(batch))) + ("mask" to mask))
                }
            }
        }
        publish()
    }

    private suspend fun runLayer(
        depth: Int,
        blocks: Blocks,
        prefetchNext: Boolean,
    ) {
        val source = view(depth - 1)
        work.mappings.Scope().use { scope ->
            val program = blocks.open(depth - 1)
            val feed = work.bundle.blockWeights(depth - 1, scope) + work.state.adapter(depth - 1)
            if (prefetchNext) work.prefetch(work.bundle.passFile(depth))
            pass(depth, batchOrder(data.numBatches, destination(depth).base)) { batch, mask ->
                source.read(batch, h)
                program.run(feed + ("h" to h) + ("mask" to mask))
            }
        }
    }

    private suspend fun pass(
        depth: Int,
        order: IntProgression,
        compute: (batch: Int, mask: TensorView) -> ProgramOutputs,
    ) {
        for (batch in order.drop(done[depth] ?: 0)) {
            val mask = data.mask(data.storedBatch(batch))
            h.floats().put(compute(batch, mask).floats("h"))
            destination(depth).write(batch, h)
            onBatch?.invoke(depth, batch, h, mask)
            val count = (done[depth] ?: 0) + 1
            done[depth] = count
            work.journal.append("pass", JsonList(listOf(depth, count).map { JsonNumber.of(it.toLong()) }))
            work.checkpoint("")
        }
    }

    /** Gives the kept file its name as soon as it is whole and on the storage. */
    private fun publish() {
        val kept = kept ?: return
        if ((done[kept.depth] ?: 0) < data.numBatches || kept.file.exists()) return
        view(kept.depth)
        keptFile?.flush()
        keptFile?.close()
        keptFile = null
        moveOver(work.journal.path(KEPT), kept.file)
    }

    private fun isKept(kept: KeptDepth): Boolean = SlotFile.exists(kept.file, kept.numBatches, slotBytes)

    /** Where a depth's output goes. The first depth in the hidden file has base 1, the next 0, and so on. */
    private fun destination(depth: Int): HiddenView {
        if (kept != null && depth == kept.depth) return view(depth)
        val file =
            hidden ?: SlotFile(work.journal.path(HIDDEN), data.numBatches + 1, slotBytes).also { hidden = it }
        val before = if (kept == null || depth < kept.depth) 0 else kept.depth + 1
        return HiddenView(file, 1 - (depth - before) % 2, data.batchSize)
    }

    private companion object {
        const val HIDDEN = "hidden"
        const val KEPT = "kept"
    }
}
