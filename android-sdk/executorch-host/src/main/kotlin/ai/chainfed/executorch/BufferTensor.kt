package ai.chainfed.executorch

import org.pytorch.executorch.DType
import org.pytorch.executorch.Tensor
import java.nio.Buffer
import java.nio.BufferOverflowException
import java.nio.ByteBuffer
import java.nio.DoubleBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer

/** A tensor over a direct buffer of the class that belongs to [dtype]; its elements end at the buffer's limit. */
internal class BufferTensor(
    private val data: Buffer,
    private val dtype: DType,
    shape: LongArray,
) : Tensor(shape) {
    override fun dtype(): DType = dtype

    override fun getRawDataBuffer(): Buffer = data

    override val dataAsByteArray: ByteArray
        get() = bytes(DType.INT8)?.run { ByteArray(remaining()).also(::get) } ?: super.dataAsByteArray

    override val dataAsUnsignedByteArray: ByteArray
        get() = bytes(DType.UINT8)?.run { ByteArray(remaining()).also(::get) } ?: super.dataAsUnsignedByteArray

    override val dataAsShortArray: ShortArray
        get() = elements<ShortBuffer>()?.run { ShortArray(remaining()).also(::get) } ?: super.dataAsShortArray

    override val dataAsIntArray: IntArray
        get() = elements<IntBuffer>()?.run { IntArray(remaining()).also(::get) } ?: super.dataAsIntArray

    override val dataAsLongArray: LongArray
        get() = elements<LongBuffer>()?.run { LongArray(remaining()).also(::get) } ?: super.dataAsLongArray

    override val dataAsDoubleArray: DoubleArray
        get() = elements<DoubleBuffer>()?.run { DoubleArray(remaining()).also(::get) } ?: super.dataAsDoubleArray

    override val dataAsFloatArray: FloatArray
        get() =
            elements<FloatBuffer>()?.run { FloatArray(remaining()).also(::get) }
                ?: elements<ShortBuffer>()?.run { FloatArray(remaining()) { float16(get()) } }
                ?: super.dataAsFloatArray

    override fun copyDataInto(dst: ByteBuffer) {
        bytes(DType.INT8)?.let(dst::put) ?: super.copyDataInto(dst)
    }

    override fun copyDataIntoUnsigned(dst: ByteBuffer) {
        bytes(DType.UINT8)?.let(dst::put) ?: super.copyDataIntoUnsigned(dst)
    }

    override fun copyDataInto(dst: ShortBuffer) {
        elements<ShortBuffer>()?.let(dst::put) ?: super.copyDataInto(dst)
    }

    override fun copyDataInto(dst: IntBuffer) {
        elements<IntBuffer>()?.let(dst::put) ?: super.copyDataInto(dst)
    }

    override fun copyDataInto(dst: LongBuffer) {
        elements<LongBuffer>()?.let(dst::put) ?: super.copyDataInto(dst)
    }

    override fun copyDataInto(dst: DoubleBuffer) {
        elements<DoubleBuffer>()?.let(dst::put) ?: super.copyDataInto(dst)
    }

    override fun copyDataInto(dst: FloatBuffer) {
        val halves = elements<ShortBuffer>()
        when {
            halves == null -> elements<FloatBuffer>()?.let(dst::put) ?: super.copyDataInto(dst)
            dst.remaining() < halves.remaining() -> throw BufferOverflowException()
            else -> while (halves.hasRemaining()) dst.put(float16(halves.get()))
        }
    }

    override fun toString(): String = "Tensor(${shape().contentToString()}, $dtype)"

    /** All elements from the first on, under a position of their own; null when they are of another class. */
    private inline fun <reified B : Buffer> elements(): B? = data.duplicate().rewind() as? B

    private fun bytes(wanted: DType): ByteBuffer? = if (dtype == wanted) elements() else null

    private companion object {
        const val SIGN = 0x8000
        const val INFINITE = 0x7c00
        const val MANTISSA_SHIFT = 13
        const val FLOAT_INFINITY_BITS = 0x7f800000

        // 2^112: between the two formats' exponent biases.
        val EXPONENT_STEP = Float.fromBits((127 + 112) shl 23)

        fun float16(bits: Short): Float {
            val magnitude = (bits.toInt() and SIGN.inv()) and 0xffff
            val shifted = magnitude shl MANTISSA_SHIFT
            val value =
                if (magnitude >= INFINITE) {
                    Float.fromBits(shifted or FLOAT_INFINITY_BITS)
                } else {
                    Float.fromBits(shifted) * EXPONENT_STEP
                }
            return if (bits < 0) -value else value
        }
    }
}
