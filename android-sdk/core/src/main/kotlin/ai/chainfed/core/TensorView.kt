package ai.chainfed.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.LongBuffer

/**
 * A tensor over memory that the garbage collector does not move: a mapped file or a direct buffer.
 *
 * [bytes] covers exactly the tensor, row-major in native order. Views share the memory; none of the functions here
 * changes [bytes]' position.
 */
internal class TensorView(
    val bytes: ByteBuffer,
    val shape: List<Int>,
    val type: TensorType,
) {
    val numElements: Int get() = bytes.capacity() / type.bytes

    /** A new view of a float32 tensor, at its beginning. */
    fun floats(): FloatBuffer = whole().asFloatBuffer()

    /** A new view of an int64 tensor, at its beginning. */
    fun longs(): LongBuffer = whole().asLongBuffer()

    /** The bytes, from the beginning, in native order. */
    fun whole(): ByteBuffer = bytes.duplicate().apply { clear() }.order(ByteOrder.nativeOrder())

    companion object {
        /** A tensor of zeros in memory of its own. */
        fun allocate(
            shape: List<Int>,
            type: TensorType = TensorType.FLOAT32,
        ): TensorView {
            val spec = TensorSpec("", shape, type)
            return TensorView(ByteBuffer.allocateDirect(spec.numBytes).order(ByteOrder.nativeOrder()), shape, type)
        }

        /** A float32 scalar. */
        fun scalar(value: Float): TensorView = allocate(emptyList()).also { it.floats().put(value) }
    }
}

/** The part of [bytes] from [start] on, [count] bytes long, in native order: a view. */
internal fun slice(
    bytes: ByteBuffer,
    start: Int,
    count: Int,
): ByteBuffer {
    val copy = bytes.duplicate()
    copy.clear()
    copy.limit(start + count)
    copy.position(start)
    return copy.slice().order(ByteOrder.nativeOrder())
}
