package ai.chainfed.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder

class ShardTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val scope = Mappings().Scope()

    /** A file with [header], padded to [headerBytes], and [numBytes] of data, of which the nth byte is n modulo 100. */
    private fun shardFile(
        header: String,
        numBytes: Int,
        headerBytes: Int = header.length,
    ): File {
        val file = folder.newFile()
        val length = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(headerBytes.toLong()).array()
        file.writeBytes(length + header.padEnd(headerBytes).toByteArray() + ByteArray(numBytes) { (it % 100).toByte() })
        return file
    }

    private fun entry(
        name: String,
        type: String,
        numElements: Int,
        start: Int,
        end: Int,
    ): String = "\"$name\":{\"dtype\":\"$type\",\"shape\":[$numElements],\"data_offsets\":[$start,$end]}"

    private fun firstByte(tensor: TensorView): Int = tensor.whole().get(0).toInt()

    @Test
    fun `tensors come in the header's order with their own types and shapes`() {
        val header = "{${entry("b", "F32", 2, 8, 16)},${entry("a", "I64", 1, 0, 8)},${entry("c", "F16", 3, 16, 22)}}"
        val tensors = Shard(shardFile(header, 22, 176), scope).tensors
        assertEquals(listOf("b", "a", "c"), tensors.keys.toList())
        assertEquals(listOf(TensorType.FLOAT32, TensorType.INT64, TensorType.FLOAT16), tensors.values.map { it.type })
        assertEquals(listOf(listOf(2), listOf(1), listOf(3)), tensors.values.map { it.shape })
        assertEquals(0x0706050403020100, tensors.getValue("a").longs().get(0))
        assertEquals(listOf(8, 0, 16), tensors.values.map(::firstByte))
    }

    @Test
    fun `a tensor is copied only where reading past its end would leave the mapping`() {
        // Header and data fill the first page but for what lies behind "near": one byte too little.
        val near = 4096 - 8 - 248 - GUARD_BYTES
        for ((numBytes, isView) in listOf(near to true, near + 1 to false)) {
            val file = shardFile("{${entry("far", "I8", numBytes, 0, numBytes)}}", numBytes, 248)
            val tensor = Shard(file, scope).tensors.getValue("far")
            assertEquals(0, firstByte(tensor))
            RandomAccessFile(file, "rw").use { opened ->
                opened.seek(256)
                opened.write(77)
            }
            assertEquals("$numBytes", if (isView) 77 else 0, firstByte(tensor))
            assertEquals((numBytes - 1) % 100, tensor.whole().get(numBytes - 1).toInt())
        }
    }

    @Test
    fun `a tensor that does not lie where its type wants it is copied`() {
        val header = "{${entry("a", "I8", 2, 0, 2)},${entry("b", "F32", 1, 2, 6)}}"
        val tensor = Shard(shardFile(header, 6, 248), scope).tensors.getValue("b")
        val expected = ByteBuffer.wrap(byteArrayOf(2, 3, 4, 5)).order(ByteOrder.LITTLE_ENDIAN).getFloat(0)
        assertEquals(expected, tensor.floats().get(0), 0f)
    }

    @Test
    fun `types that no program takes are refused by name`() {
        val file = shardFile("{${entry("a", "F64", 1, 0, 8)}}", 8)
        assertRefused(
            "weights.st: tensor a is F64, but programs take F32, F16, I8, I64; export the bundle again.",
            file,
        )
    }

    @Test
    fun `a file that is cut, empty or absent is refused`() {
        val whole = shardFile("{${entry("a", "F32", 2, 0, 8)}}", 8).readBytes()
        for (size in listOf(0, 7, 8, 30, whole.size - 1)) {
            val file = folder.newFile()
            file.writeBytes(whole.copyOf(size))
            val refusal = assertThrows(ChainFedException.BadBundle::class.java) { Shard(file, scope, "weights.st") }
            assertTrue(refusal.message!!, refusal.message!!.startsWith("weights.st is no safetensors file: "))
        }
        assertRefused("weights.st cannot be read; fetch the bundle again.", File(folder.root, "absent"))
    }

    @Test
    fun `a file that Android cannot map is refused`() {
        val numBytes = Int.MAX_VALUE
        val file = shardFile("{${entry("a", "I8", numBytes, 0, numBytes)}}", 0)
        RandomAccessFile(file, "rw").use { it.setLength(file.length() + numBytes) }
        assertRefused("weights.st has more than 2 GiB, which Android cannot map; export a smaller model.", file)
    }

    private fun assertRefused(
        sentence: String,
        file: File,
    ) {
        val refusal = assertThrows(ChainFedException.BadBundle::class.java) { Shard(file, scope, "weights.st") }
        assertEquals(sentence, refusal.message)
    }
}
