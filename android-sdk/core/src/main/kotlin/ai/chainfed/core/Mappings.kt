package ai.chainfed.core

import java.io.Closeable
import java.lang.ref.PhantomReference
import java.lang.ref.ReferenceQueue
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

/**
 * The mapped files of one device.
 *
 * Neither Java nor Android can end a mapping at will: it ends when the garbage collector finds that nobody has the
 * buffer any more. So mappings are made in a [Scope], and when it is closed they are let go; before a new one this asks
 * for collections until what was let go and is still mapped is no more than [SPARE_BYTES] or the new mapping's size.
 * Thus no more is mapped than what is in use and once as much again.
 *
 * Thread-safe.
 */
internal class Mappings {
    private class Mapping(
        buffer: ByteBuffer,
        queue: ReferenceQueue<ByteBuffer>,
    ) : PhantomReference<ByteBuffer>(buffer, queue) {
        val numBytes = buffer.capacity().toLong()
        var isLetGo = false
    }

    private val queue = ReferenceQueue<ByteBuffer>()
    private val live = HashSet<Mapping>()

    /** Bytes that are mapped, as far as the garbage collector has told. */
    val mappedBytes: Long
        @Synchronized get() {
            forgetEnded()
            return live.sumOf { it.numBytes }
        }

    /** Mappings that are used together. */
    inner class Scope : Closeable {
        private val mine = ArrayList<Mapping>()

        /** Maps all of a file for reading. */
        fun read(channel: FileChannel): ByteBuffer = map(channel, FileChannel.MapMode.READ_ONLY, channel.size(), mine)

        /** Maps the first [numBytes] of a file for reading and writing; what is written is in the file at once. */
        fun readWrite(
            channel: FileChannel,
            numBytes: Long,
        ): ByteBuffer = map(channel, FileChannel.MapMode.READ_WRITE, numBytes, mine)

        /** Lets the mappings go. Nobody may use a tensor of theirs from now on. */
        override fun close(): Unit = letGo(mine)
    }

    @Synchronized
    private fun map(
        channel: FileChannel,
        mode: FileChannel.MapMode,
        numBytes: Long,
        owned: MutableList<Mapping>,
    ): ByteBuffer {
        makeRoom(numBytes)
        val buffer: ByteBuffer = channel.map(mode, 0, numBytes)
        val mapping = Mapping(buffer, queue)
        live.add(mapping)
        owned.add(mapping)
        return buffer
    }

    @Synchronized
    private fun letGo(mappings: MutableList<Mapping>) {
        mappings.forEach { it.isLetGo = true }
        mappings.clear()
    }

    @Suppress("ExplicitGarbageCollectionCall")
    private fun makeRoom(numBytes: Long) {
        val allowed = maxOf(numBytes, SPARE_BYTES)
        val until = System.nanoTime() + PATIENCE_NANOS
        forgetEnded()
        var collected = false
        while (live.sumOf { if (it.isLetGo) it.numBytes else 0 } > allowed && System.nanoTime() < until) {
            System.gc()
            forget(queue.remove(POLL_MILLIS))
            forgetEnded()
            collected = true
        }
        // The collector's thread tells of a buffer and ends its mapping in any order.
        if (collected) Thread.sleep(SETTLE_MILLIS)
    }

    private fun forgetEnded() {
        while (true) forget(queue.poll() ?: return)
    }

    private fun forget(ended: Any?) {
        live.remove(ended as? Mapping ?: return)
    }

    private companion object {
        const val SPARE_BYTES = 1L shl 24
        const val PATIENCE_NANOS = 2_000_000_000L
        const val POLL_MILLIS = 20L
        const val SETTLE_MILLIS = 5L
    }
}
