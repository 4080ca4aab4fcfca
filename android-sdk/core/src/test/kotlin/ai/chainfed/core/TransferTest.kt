package ai.chainfed.core

import ai.chainfed.v1.updateMetrics
import io.grpc.Status
import io.grpc.StatusException
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

/** A device against a coordinator that drops, damages, refuses or is not there. */
class TransferTest {
    @get:Rule
    val folder = TemporaryFolder()

    @get:Rule
    val server = FakeCoordinator()

    private val retries = ArrayList<String>()
    private val data = ByteArray(10_240) { (it * 31 / 7).toByte() }
    private val update = ByteArray(1_000_000) { (it * 31 / 7).toByte() }

    private fun coordinator(patienceMillis: Long = 5_000) =
        Coordinator(server.channel, "here:7700", patienceMillis, null) { retries += it }

    private fun fetch(
        ref: ai.chainfed.v1.BlobRef,
        blobs: BlobFolder = BlobFolder(folder.root),
    ): BlobFolder.Fetched = runBlocking { blobs.fetch(coordinator(), ref, "weights/layer_00.safetensors") }

    @Test
    fun `a broken download goes on where it stopped`() {
        val ref = server.put(data)
        server.breakAfter += listOf(3, 0, 2)
        val fetched = fetch(ref)
        assertArrayEquals(data, fetched.file.readBytes())
        assertEquals(data.size.toLong(), fetched.received)
        assertEquals(listOf(0L, 3000L, 3000L, 5000L), server.offsets)
        assertEquals(listOf("The coordinator at here:7700 does not answer; trying again."), retries)
        assertEquals(0, fetch(ref).received)
        assertEquals(4, server.offsets.size)
    }

    @Test
    fun `what a killed device had fetched is not fetched again`() {
        val ref = server.put(data)
        File(folder.root, "${ref.sha256}.part").writeBytes(data.copyOf(4321))
        assertEquals(data.size - 4321L, fetch(ref).received)
        assertEquals(listOf(4321L), server.offsets)
    }

    @Test
    fun `a damaged remainder or blob is fetched anew`() {
        val ref = server.put(data)
        val wrong = data.copyOf().also { it[data.size - 1] = 0 }
        for (left in listOf(ByteArray(300) { 1 }, wrong, data + byteArrayOf(1, 2, 3))) {
            for (name in listOf("${ref.sha256}.part", ref.sha256)) {
                File(folder.root, name).writeBytes(left)
                assertArrayEquals(data, fetch(ref).file.readBytes())
                File(folder.root, ref.sha256).delete()
            }
        }
    }

    @Test
    fun `bytes that are not the blob are refused`() {
        val wrong = data.copyOf().also { it[data.size - 1] = 0 }
        for (sent in listOf(wrong, data.copyOf(data.size - 5), data + byteArrayOf(1), ByteArray(0))) {
            val ref = server.put(data, sent)
            val refusal = assertThrows(ChainFedException.BadBundle::class.java) { fetch(ref) }
            assertEquals(
                "The coordinator sends bytes for weights/layer_00.safetensors that do not have its SHA-256; its copy " +
                    "is damaged: export the bundle again and create a new run.",
                refusal.message,
            )
            assertEquals(0, folder.root.list()!!.size)
        }
    }

    @Test
    fun `an empty blob is a blob`() {
        assertEquals(0, fetch(server.put(ByteArray(0))).file.length())
    }

    @Test
    fun `only named blobs are kept, and fetched again when they are needed again`() {
        val blobs = BlobFolder(folder.root)
        val kept = fetch(server.put(data), blobs)
        val gone = server.put(update)
        assertEquals(update.size.toLong(), fetch(gone, blobs).received)
        File(folder.root, "broken.part").writeText("x")
        blobs.keepOnly(setOf(kept.file.name))
        assertEquals(listOf(kept.file.name), folder.root.list()!!.asList())
        assertEquals(update.size.toLong(), fetch(gone, blobs).received)
    }

    private fun upload(): Coordinator.Uploaded {
        val file = File(folder.root, "update").also { it.writeBytes(update) }
        val metrics =
            updateMetrics {
                numExamples = 3
                loss = 0.5
            }
        return runBlocking { coordinator().upload("a", file, "5".repeat(64), metrics) }
    }

    @Test
    fun `a broken upload goes on where it stopped`() {
        server.breakAfter += listOf(2, 0, 1)
        val uploaded = upload()
        assertTrue(uploaded.counted)
        assertArrayEquals(update, server.updates.single())
        val piece = 262_144L
        assertEquals(listOf(0L, 2 * piece, 2 * piece, 3 * piece), server.headers.map { it.offset })
        assertTrue("${uploaded.sent}", uploaded.sent >= update.size)
        for (header in server.headers) {
            assertEquals(update.size.toLong(), header.update.sizeBytes)
            assertEquals(3L, header.metrics.numExamples)
            assertTrue(header.signature.isEmpty)
        }
    }

    @Test
    fun `an update that was accepted before is not sent again`() {
        server.accepted = true
        val uploaded = upload()
        assertEquals(0, uploaded.sent)
        assertTrue(uploaded.counted && server.headers.isEmpty())
    }

    @Test
    fun `an update that came too late is said not to count`() {
        server.counted = false
        assertFalse(upload().counted)
    }

    @Test
    fun `a conflict is asked about and tried again three times`() {
        repeat(3) { server.failures += FakeCoordinator.refusal("CONFLICT", "ask again") }
        assertTrue(upload().counted)
        assertEquals(4, server.headers.size)
        repeat(4) { server.failures += FakeCoordinator.refusal("CONFLICT", "ask again") }
        assertEquals("ask again", assertThrows(ChainFedException.Conflict::class.java) { upload() }.message)
    }

    private fun enrol(patienceMillis: Long = 5_000): String =
        runBlocking { coordinator(patienceMillis).also { it.enrol("k", "m".repeat(200), "token") }.deviceId }

    @Test
    fun `a silent coordinator is tried again, and told of once`() {
        repeat(3) { server.failures += StatusException(Status.UNAVAILABLE) }
        assertEquals("0123456789abcdef", enrol())
        assertEquals(1, retries.size)
        val request = server.enrolments.single()
        assertEquals("token", request.enrolmentToken)
        assertEquals(128, request.model.length)
        assertEquals(1, request.bundleFormatVersion)
        assertTrue(request.publicKey.isEmpty)
    }

    @Test
    fun `a coordinator that stays silent is given up after the patience`() {
        val sentences =
            mapOf(
                Status.UNAVAILABLE to "No coordinator answers at here:7700; check the address and the network. ",
                Status.DEADLINE_EXCEEDED to "The coordinator at here:7700 did not answer in time; try again later. ",
            )
        for ((status, sentence) in sentences) {
            repeat(20) { server.failures += StatusException(status) }
            val refusal = assertThrows(ChainFedException.Unreachable::class.java) { enrol(400) }
            assertEquals("$sentence(Tried for 0 s.)", refusal.message)
            assertTrue("${server.failures.size}", server.failures.size in 14..18)
            server.failures.clear()
        }
        repeat(20) { server.failures += StatusException(Status.INTERNAL.withDescription("oh")) }
        val refusal = assertThrows(ChainFedException.Other::class.java) { enrol(400) }
        assertEquals("The coordinator at here:7700 failed with INTERNAL: oh.", refusal.message)
    }

    @Test
    fun `patience begins anew with every byte`() {
        val ref = server.put(data)
        server.breakAfter += List(9) { 1 }
        val fetched = runBlocking { BlobFolder(folder.root).fetch(coordinator(300), ref, "x") }
        assertEquals(10, server.offsets.size)
        assertArrayEquals(data, fetched.file.readBytes())
    }

    @Test
    fun `what the coordinator refuses is not tried again`() {
        val codes =
            listOf(
                "BAD_INPUT" to ChainFedException.BadInput::class.java,
                "BUNDLE" to ChainFedException.BadBundle::class.java,
                "NOT_FOUND" to ChainFedException.NotFound::class.java,
                "UPDATE_REJECTED" to ChainFedException.UpdateRejected::class.java,
                "SOMETHING_NEW" to ChainFedException.Other::class.java,
            )
        for ((code, type) in codes) {
            server.failures += FakeCoordinator.refusal(code, "so it is", Status.UNAVAILABLE)
            val refusal = assertThrows(type) { enrol() }
            assertEquals("so it is", refusal.message)
            assertEquals(code, refusal.code)
        }
        server.failures += StatusException(Status.UNIMPLEMENTED)
        val refusal = assertThrows(ChainFedException.Other::class.java) { enrol() }
        assertEquals("The coordinator at here:7700 failed with UNIMPLEMENTED: no details.", refusal.message)
        assertTrue(server.enrolments.isEmpty() && retries.isEmpty())
    }
}
