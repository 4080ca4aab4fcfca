package ai.chainfed.executorch

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertSame
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.pytorch.executorch.DType
import org.pytorch.executorch.EValue
import org.pytorch.executorch.ExecuTorchRuntime
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import java.nio.BufferOverflowException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.DoubleBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer

/** Tensors and scalars of every kind, alone and through a program. */
class ValuesTest {
    private val shape = longArrayOf(2, 3)
    private val numbers = floatArrayOf(-2f, -1.5f, 0f, 0.5f, 1f, 100f)
    private val halves = shortArrayOf(0xC000.toShort(), 0xBE00.toShort(), 0, 0x3800, 0x3C00, 0x5640)

    @Test
    fun `values of every kind go in and come out`() =
        Module.load(References.program("convert"), Module.LOAD_MODE_MMAP, 1).use { module ->
            val small = byteArrayOf(-1, 0, 1, 2, 3, 127)
            val large = longArrayOf(-1, 0, 1, 2, 3, 127)
            val outputs =
                module.forward(
                    EValue.from(Tensor.fromBlob(numbers, shape)),
                    EValue.from(Tensor.fromBlob(halves, shape)),
                    EValue.from(Tensor.fromBlob(small, shape)),
                    EValue.from(Tensor.fromBlob(large, shape)),
                    EValue.from(3L),
                    EValue.from(0.5),
                    EValue.from(true),
                )
            val tensors = outputs.take(8).map { it.toTensor() }
            assertEquals(
                listOf("HALF", "FLOAT", "INT32", "DOUBLE", "UINT8", "INT8", "INT64", "BOOL"),
                tensors.map { it.dtype().name },
            )
            tensors.forEach { assertArrayEquals(shape, it.shape()) }
            assertArrayEquals(halves, tensors[0].dataAsShortArray)
            assertArrayEquals(numbers, tensors[0].dataAsFloatArray, 0f)
            assertArrayEquals(numbers, tensors[1].dataAsFloatArray, 0f)
            assertArrayEquals(intArrayOf(-1, 0, 1, 2, 3, 127), tensors[2].dataAsIntArray)
            assertArrayEquals(DoubleArray(6) { large[it].toDouble() }, tensors[3].dataAsDoubleArray, 0.0)
            assertArrayEquals(small, tensors[4].dataAsUnsignedByteArray)
            assertArrayEquals(small, tensors[5].dataAsByteArray)
            assertArrayEquals(longArrayOf(-2, -1, 0, 0, 1, 100), tensors[6].dataAsLongArray)
            assertThrows(IllegalStateException::class.java) { tensors[7].getRawDataBuffer() }
            assertEquals(3L, outputs[8].toInt())
            assertEquals(0.5, outputs[9].toDouble(), 0.0)
            assertTrue(outputs[10].toBool())
        }

    @Test
    fun `outputs are views that the next call writes over`() =
        Module.load(References.program("keep"), Module.LOAD_MODE_MMAP, 1).use { module ->
            fun run(value: Float) =
                module
                    .forward(
                        EValue.from(Tensor.fromBlob(FloatArray(4096) { value }, longArrayOf(4096))),
                    )[0]
                    .toTensor()
            val raw = run(0f).getRawDataBuffer() as FloatBuffer
            assertTrue(raw.isDirect && raw.order() == ByteOrder.nativeOrder())
            val (first, copied) = Pair(raw[0], FloatBuffer.allocate(4096))
            run(0f).copyDataInto(copied)
            run(1f)
            assertEquals(first + 1f, raw[0], 0f)
            assertEquals(first, copied[0], 0f)
        }

    @Test
    fun `a tensor shares its buffer, whatever the position`() {
        val data = Tensor.allocateFloatBuffer(6)
        val tensor = Tensor.fromBlob(data, shape)
        assertSame(data, tensor.getRawDataBuffer())
        data.put(numbers).position(4)
        assertArrayEquals(numbers, tensor.dataAsFloatArray, 0f)
        assertEquals(4, data.position())
        assertEquals(6L, tensor.numel())
        tensor.shape()[0] = 9
        assertArrayEquals(shape, tensor.shape())
        assertEquals(DType.FLOAT.jniCode, tensor.dtypeJniCode())
    }

    @Test
    fun `a tensor gives its own dtype and no other`() {
        val bytes = ByteArray(6) { it.toByte() }
        val tensors =
            listOf(
                Tensor.fromBlob(bytes, shape),
                Tensor.fromBlobUnsigned(bytes, shape),
                Tensor.fromBlob(halves, shape),
                Tensor.fromBlob(IntArray(6), shape),
                Tensor.fromBlob(numbers, shape),
                Tensor.fromBlob(LongArray(6), shape),
                Tensor.fromBlob(DoubleArray(6), shape),
            )
        val reads =
            listOf<(Tensor) -> Any>(
                { it.dataAsByteArray },
                { it.dataAsUnsignedByteArray },
                { it.dataAsShortArray },
                { it.dataAsIntArray },
                { it.dataAsFloatArray },
                { it.dataAsLongArray },
                { it.dataAsDoubleArray },
            )
        val copies =
            listOf<(Tensor) -> Any>(
                { it.copyDataInto(ByteBuffer.allocate(6)) },
                { it.copyDataIntoUnsigned(ByteBuffer.allocate(6)) },
                { it.copyDataInto(ShortBuffer.allocate(6)) },
                { it.copyDataInto(IntBuffer.allocate(6)) },
                { it.copyDataInto(FloatBuffer.allocate(6)) },
                { it.copyDataInto(LongBuffer.allocate(6)) },
                { it.copyDataInto(DoubleBuffer.allocate(6)) },
            )
        val half = 2
        val float = 4
        for ((dtype, tensor) in tensors.withIndex()) {
            for (read in reads.indices) {
                for (take in listOf(reads[read], copies[read])) {
                    if (read == dtype || (dtype == half && read == float)) {
                        take(tensor)
                    } else {
                        assertThrows(IllegalStateException::class.java) { take(tensor) }
                    }
                }
            }
        }
        assertThrows(BufferOverflowException::class.java) { tensors[half].copyDataInto(FloatBuffer.allocate(5)) }
        assertThrows(BufferOverflowException::class.java) { tensors[float].copyDataInto(FloatBuffer.allocate(5)) }
    }

    @Test
    fun `every float16 is the float32 of the same value`() {
        val all = ShortArray(1 shl 16) { it.toShort() }
        val found = Tensor.fromBlob(all, longArrayOf(all.size.toLong())).dataAsFloatArray
        for (bits in all.indices) {
            val (exponent, fraction) = Pair(bits shr 10 and 31, bits and 1023)
            val magnitude =
                when (exponent) {
                    0 -> Math.scalb(fraction.toDouble(), -24)
                    31 -> if (fraction == 0) Double.POSITIVE_INFINITY else Double.NaN
                    else -> Math.scalb(1024.0 + fraction, exponent - 25)
                }
            val wanted = (if (bits shr 15 == 1) -magnitude else magnitude).toFloat()
            assertEquals(
                "$bits",
                wanted.toBits(),
                found[bits].toBits().takeUnless { found[bits].isNaN() } ?: Float.NaN.toBits(),
            )
        }
    }

    @Test
    fun `a buffer that does not fit is refused`() {
        val wrong =
            listOf<() -> Tensor>(
                { Tensor.fromBlob(FloatArray(5), shape) },
                { Tensor.fromBlob(Tensor.allocateFloatBuffer(7), shape) },
                { Tensor.fromBlob(FloatBuffer.allocate(6), shape) },
                { Tensor.fromBlob(ByteBuffer.allocateDirect(24).order(otherOrder()).asFloatBuffer(), shape) },
                { Tensor.fromBlob(FloatArray(6), longArrayOf(-2, -3)) },
            )
        for (make in wrong) {
            assertThrows(IllegalArgumentException::class.java) { make() }
        }
        assertEquals(1L, Tensor.numel(longArrayOf()))
        assertEquals(0L, Tensor.fromBlob(FloatArray(0), longArrayOf(0, 4)).numel())
    }

    private fun otherOrder(): ByteOrder =
        if (ByteOrder.nativeOrder() == ByteOrder.LITTLE_ENDIAN) ByteOrder.BIG_ENDIAN else ByteOrder.LITTLE_ENDIAN

    @Test
    fun `a value is of one kind`() {
        val tensor = Tensor.fromBlob(numbers, shape)
        val values =
            listOf(
                EValue.optionalNone(),
                EValue.from(tensor),
                EValue.from(true),
                EValue.from(1L),
                EValue.from(1.0),
                EValue.from("a"),
            )
        val kinds =
            values.map {
                listOf(
                    it.isNone,
                    it.isTensor,
                    it.isBool,
                    it.isInt,
                    it.isDouble,
                    it.isString,
                ).indexOf(true)
            }
        assertEquals(values.indices.toList(), kinds)
        assertSame(tensor, values[1].toTensor())
        assertEquals("a", values[5].toStr())
        for (value in values) {
            val takes =
                listOf<
                    (
                        EValue,
                    ) -> Any,
                >({ it.toTensor() }, { it.toBool() }, { it.toInt() }, { it.toDouble() }, { it.toStr() })
            assertEquals(if (value.isNone) 0 else 1, takes.count { take -> runCatching { take(value) }.isSuccess })
            takes
                .mapNotNull {
                    runCatching {
                        it(
                            value,
                        )
                    }.exceptionOrNull()
                }.forEach { assertTrue(it is IllegalStateException) }
        }
    }

    @Test
    fun `the runtime knows its backends and kernels, a module those that it uses`() {
        assertTrue("XnnpackBackend" in ExecuTorchRuntime.getRegisteredBackends())
        assertTrue("aten::add.out" in ExecuTorchRuntime.getRegisteredOps())
        assertSame(ExecuTorchRuntime.getRuntime(), ExecuTorchRuntime.getRuntime())
        Module.load(VectorCase.named("encoder/block-0").file.path, Module.LOAD_MODE_MMAP, 1).use { module ->
            val metadata = module.getMethodMetadata("forward")
            assertEquals("forward", metadata.name)
            assertArrayEquals(arrayOf("XnnpackBackend"), metadata.backends)
        }
    }

    @Test
    fun `a dtype is found by its number`() {
        DType.entries.forEach { assertSame(it, DType.fromJniCode(it.jniCode)) }
        assertThrows(IllegalArgumentException::class.java) { DType.fromJniCode(23) }
    }
}
