package org.pytorch.executorch

import ai.chainfed.executorch.BufferTensor
import java.nio.Buffer
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.DoubleBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer

/**
 * A contiguous tensor over a direct buffer in native byte order, or over a program's arena.
 *
 * The buffer is shared, its position does not count and its limit is its end. What reads data throws
 * IllegalStateException when the tensor's dtype is another; what copies into a buffer throws BufferOverflowException
 * when that has not enough room left.
 */
public abstract class Tensor internal constructor(
    shape: LongArray,
) {
    private val sizes: LongArray = shape.copyOf().also { numel(it) }

    /** The number of elements. */
    public fun numel(): Long = numel(sizes)

    /** The sizes, a copy. */
    public fun shape(): LongArray = sizes.copyOf()

    public abstract fun dtype(): DType

    /** The number of [dtype]. */
    public fun dtypeJniCode(): Int = dtype().jniCode

    /** The elements of an int8 tensor, a copy. */
    public open val dataAsByteArray: ByteArray get() = throw another("bytes")

    /** The bits of a float16 tensor's elements, a copy. */
    public open val dataAsShortArray: ShortArray get() = throw another("shorts")

    /** The elements of a uint8 tensor, a copy. */
    public open val dataAsUnsignedByteArray: ByteArray get() = throw another("unsigned bytes")

    /** The elements of an int32 tensor, a copy. */
    public open val dataAsIntArray: IntArray get() = throw another("ints")

    /** The elements of a float32 or float16 tensor, a copy. */
    public open val dataAsFloatArray: FloatArray get() = throw another("floats")

    /** The elements of an int64 tensor, a copy. */
    public open val dataAsLongArray: LongArray get() = throw another("longs")

    /** The elements of a float64 tensor, a copy. */
    public open val dataAsDoubleArray: DoubleArray get() = throw another("doubles")

    /** Puts the elements of a float32 or float16 tensor into [dst]. */
    public open fun copyDataInto(dst: FloatBuffer): Unit = throw another("floats")

    /** Puts the elements of an int8 tensor into [dst]. */
    public open fun copyDataInto(dst: ByteBuffer): Unit = throw another("bytes")

    /** Puts the elements of a uint8 tensor into [dst]. */
    public open fun copyDataIntoUnsigned(dst: ByteBuffer): Unit = throw another("unsigned bytes")

    /** Puts the elements of an int32 tensor into [dst]. */
    public open fun copyDataInto(dst: IntBuffer): Unit = throw another("ints")

    /** Puts the elements of an int64 tensor into [dst]. */
    public open fun copyDataInto(dst: LongBuffer): Unit = throw another("longs")

    /** Puts the elements of a float64 tensor into [dst]. */
    public open fun copyDataInto(dst: DoubleBuffer): Unit = throw another("doubles")

    /** Puts the bits of a float16 tensor's elements into [dst]. */
    public open fun copyDataInto(dst: ShortBuffer): Unit = throw another("shorts")

    /** The buffer itself, of the class that belongs to the dtype: float32 has a [FloatBuffer]. */
    public open fun getRawDataBuffer(): Buffer = throw another("a buffer")

    private fun another(what: String) = IllegalStateException("a tensor of ${dtype()} does not give $what")

    public companion object {
        @JvmStatic
        public fun allocateByteBuffer(numElements: Int): ByteBuffer = allocate(numElements, Byte.SIZE_BYTES)

        @JvmStatic
        public fun allocateIntBuffer(numElements: Int): IntBuffer = allocate(numElements, Int.SIZE_BYTES).asIntBuffer()

        @JvmStatic
        public fun allocateFloatBuffer(numElements: Int): FloatBuffer =
            allocate(numElements, Float.SIZE_BYTES).asFloatBuffer()

        @JvmStatic
        public fun allocateLongBuffer(numElements: Int): LongBuffer =
            allocate(numElements, Long.SIZE_BYTES).asLongBuffer()

        @JvmStatic
        public fun allocateHalfBuffer(numElements: Int): ShortBuffer =
            allocate(numElements, Short.SIZE_BYTES).asShortBuffer()

        @JvmStatic
        public fun allocateDoubleBuffer(numElements: Int): DoubleBuffer =
            allocate(numElements, Double.SIZE_BYTES).asDoubleBuffer()

        // Over an array: copied into a direct buffer. IllegalArgumentException when the shape is not its size.

        @JvmStatic
        public fun fromBlobUnsigned(
            data: ByteArray,
            shape: LongArray,
        ): Tensor = fromBlobUnsigned(allocateByteBuffer(data.size).put(data), shape)

        @JvmStatic
        public fun fromBlob(
            data: ByteArray,
            shape: LongArray,
        ): Tensor = fromBlob(allocateByteBuffer(data.size).put(data), shape)

        @JvmStatic
        public fun fromBlob(
            data: IntArray,
            shape: LongArray,
        ): Tensor = fromBlob(allocateIntBuffer(data.size).put(data), shape)

        @JvmStatic
        public fun fromBlob(
            data: FloatArray,
            shape: LongArray,
        ): Tensor = fromBlob(allocateFloatBuffer(data.size).put(data), shape)

        @JvmStatic
        public fun fromBlob(
            data: ShortArray,
            shape: LongArray,
        ): Tensor = fromBlob(allocateHalfBuffer(data.size).put(data), shape)

        @JvmStatic
        public fun fromBlob(
            data: LongArray,
            shape: LongArray,
        ): Tensor = fromBlob(allocateLongBuffer(data.size).put(data), shape)

        @JvmStatic
        public fun fromBlob(
            data: DoubleArray,
            shape: LongArray,
        ): Tensor = fromBlob(allocateDoubleBuffer(data.size).put(data), shape)

        // Over a buffer: shared. IllegalArgumentException unless it is direct, in native byte order, and its capacity
        // is the product of the shape.

        @JvmStatic
        public fun fromBlobUnsigned(
            data: ByteBuffer,
            shape: LongArray,
        ): Tensor = over(data, data.order(), shape, DType.UINT8)

        @JvmStatic
        public fun fromBlob(
            data: ByteBuffer,
            shape: LongArray,
        ): Tensor = over(data, data.order(), shape, DType.INT8)

        @JvmStatic
        public fun fromBlob(
            data: IntBuffer,
            shape: LongArray,
        ): Tensor = over(data, data.order(), shape, DType.INT32)

        @JvmStatic
        public fun fromBlob(
            data: FloatBuffer,
            shape: LongArray,
        ): Tensor = over(data, data.order(), shape, DType.FLOAT)

        @JvmStatic
        public fun fromBlob(
            data: ShortBuffer,
            shape: LongArray,
        ): Tensor = over(data, data.order(), shape, DType.HALF)

        @JvmStatic
        public fun fromBlob(
            data: LongBuffer,
            shape: LongArray,
        ): Tensor = over(data, data.order(), shape, DType.INT64)

        @JvmStatic
        public fun fromBlob(
            data: DoubleBuffer,
            shape: LongArray,
        ): Tensor = over(data, data.order(), shape, DType.DOUBLE)

        /** The product of the sizes. Throws IllegalArgumentException when one is below zero. */
        @JvmStatic
        public fun numel(shape: LongArray): Long {
            require(
                shape.all { it >= 0 },
            ) { "the sizes of a shape are not below zero, of ${shape.contentToString()} are" }
            return shape.fold(1L, Long::times)
        }

        private fun allocate(
            elements: Int,
            bytes: Int,
        ): ByteBuffer = ByteBuffer.allocateDirect(elements * bytes).order(ByteOrder.nativeOrder())

        private fun over(
            data: Buffer,
            order: ByteOrder,
            shape: LongArray,
            dtype: DType,
        ): Tensor {
            require(numel(shape) == data.capacity().toLong()) {
                "a buffer of ${data.capacity()} elements does not hold a tensor of shape ${shape.contentToString()}"
            }
            require(data.isDirect) { "a tensor's buffer has to be direct" }
            require(order == ByteOrder.nativeOrder()) { "a tensor's buffer has to have the machine's byte order" }
            return BufferTensor(data, dtype, shape)
        }
    }
}
