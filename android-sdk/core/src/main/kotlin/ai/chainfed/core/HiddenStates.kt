package ai.chainfed.core

import java.io.Closeable
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer

/**
 * A file of [numSlots] slots of [slotBytes] each, read and written one slot at a time, so that none of it is mapped.
 *
 * What was written survives the death of the process, not that of the machine (see [flush]).
 */
internal class SlotFile(
    val file: File,
    private val numSlots: Int,
    private val slotBytes: Int,
) : Closeable {
    private val channel = RandomAccessFile(file, "rw").channel

    init {
        channel.reserve(sizeOf(numSlots, slotBytes))
    }

    /** Fills [target], which is as long as a slot. */
    fun read(
        slot: Int,
        target: TensorView,
    ): Unit = channel.readFully(target.whole(), position(slot))

    /** Fills [target] with a part of a slot, from byte [start] of it. */
    fun readPart(
        slot: Int,
        start: Int,
        target: ByteBuffer,
    ): Unit = channel.readFully(target, position(slot) + start)

    fun write(
        slot: Int,
        source: TensorView,
    ): Unit = channel.writeFully(source.whole(), position(slot))

    /** Waits until the storage has the content. */
    fun flush(): Unit = channel.force(false)

    override fun close(): Unit = channel.close()

    private fun position(slot: Int): Long {
        if (slot !in 0 until numSlots) throw IndexOutOfBoundsException("slot $slot of $numSlots")
        return slot.toLong() * slotBytes
    }

    companion object {
        /** Whether [file] was made for this many slots. */
        fun exists(
            file: File,
            numSlots: Int,
            slotBytes: Int,
        ): Boolean = file.isFile && file.length() == sizeOf(numSlots, slotBytes)

        private fun sizeOf(
            numSlots: Int,
            slotBytes: Int,
        ): Long = numSlots.toLong() * slotBytes + GUARD_BYTES
    }
}

/** The output of one depth of the chain: batch k lies in slot k + [base] of [file]. */
internal class HiddenView(
    private val file: SlotFile,
    val base: Int,
    private val batchSize: Int,
) {
    fun read(
        batch: Int,
        target: TensorView,
    ): Unit = file.read(batch + base, target)

    fun write(
        batch: Int,
        source: TensorView,
    ): Unit = file.write(batch + base, source)

    /** The hidden states of some examples, (rows, seq, hidden), one after the other. */
    fun readRows(
        rows: IntArray,
        target: TensorView,
    ) {
        val rowBytes = target.bytes.capacity() / rows.size
        rows.forEachIndexed { place, row ->
            val part = slice(target.bytes, place * rowBytes, rowBytes)
            file.readPart(row / batchSize + base, row % batchSize * rowBytes, part)
        }
    }
}

/**
 * The order in which a pass goes through the batches so that it never overwrites what it has still to read: one that
 * writes to base 0 reads from base 1 and ascends, one that writes to base 1 descends.
 */
internal fun batchOrder(
    numBatches: Int,
    destinationBase: Int,
): IntProgression = if (destinationBase == 0) 0 until numBatches else numBatches - 1 downTo 0
