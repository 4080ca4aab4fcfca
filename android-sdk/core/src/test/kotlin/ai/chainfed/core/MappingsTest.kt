package ai.chainfed.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer

class MappingsTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val mappings = Mappings()

    private fun sparse(
        name: String,
        numBytes: Long,
    ): File = File(folder.root, name).also { file -> RandomAccessFile(file, "rw").use { it.setLength(numBytes) } }

    private fun Mappings.Scope.read(file: File): ByteBuffer = RandomAccessFile(file, "r").use { read(it.channel) }

    /** Mappings of the folder's files that the system knows of. */
    private fun systemMappings(): Int = File("/proc/self/maps").readLines().count { folder.root.path in it }

    @Test
    fun `files mapped one after the other take the place of one and what may lie about`() {
        val file = sparse("layer", 8 * MEGA)
        repeat(24) {
            mappings.Scope().use { scope ->
                assertEquals(0, scope.read(file).get(it).toInt())
                assertTrue("${mappings.mappedBytes}", mappings.mappedBytes <= 24 * MEGA)
            }
        }
        assertTrue("${systemMappings()}", systemMappings() <= 3)
    }

    @Test
    fun `files larger than what may lie about leave one of them behind`() {
        val file = sparse("layer", 48 * MEGA)
        repeat(8) {
            mappings.Scope().use { scope ->
                assertEquals(0, scope.read(file).get(it).toInt())
                assertTrue("${mappings.mappedBytes}", mappings.mappedBytes <= 96 * MEGA)
            }
        }
    }

    @Test
    fun `what is in use stays mapped, whatever is mapped after it`() {
        val used = sparse("used", 32 * MEGA)
        RandomAccessFile(used, "rw").use { it.write(7) }
        mappings.Scope().use { outer ->
            val bytes = outer.read(used)
            repeat(12) { number ->
                mappings.Scope().use { it.read(sparse("other $number", 32 * MEGA)) }
            }
            assertEquals(7, bytes.get(0).toInt())
            assertTrue(mappings.mappedBytes in 32 * MEGA..96 * MEGA)
        }
    }

    @Test
    fun `a mapping ends when its scope is closed and its buffers are forgotten`() {
        mapOnce()
        val deadline = System.nanoTime() + 20_000_000_000
        while (mappings.mappedBytes > 0 && System.nanoTime() < deadline) {
            System.gc()
            Thread.sleep(10)
        }
        assertEquals(0, mappings.mappedBytes)
        assertEquals(0, systemMappings())
    }

    /** In a frame of its own, so that no variable of the test holds the buffer. */
    private fun mapOnce() {
        val scope = mappings.Scope()
        assertEquals(0, scope.read(sparse("one", MEGA)).get(0).toInt())
        assertEquals(1, systemMappings())
        scope.close()
    }

    @Test
    fun `what is written through a mapping is in the file at once`() {
        val file = sparse("carried", 4096)
        mappings.Scope().use { scope ->
            val bytes = RandomAccessFile(file, "rw").use { scope.readWrite(it.channel, 4096) }
            bytes.put(4095, 9)
            assertEquals(9, file.readBytes()[4095].toInt())
        }
    }

    private companion object {
        const val MEGA = 1_048_576L
    }
}
