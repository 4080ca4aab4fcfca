package ai.chainfed.core

import ai.chainfed.v1.AbandonReason
import ai.chainfed.v1.Assignment
import ai.chainfed.v1.AssignmentKt
import ai.chainfed.v1.CheckInResponse
import ai.chainfed.v1.GlobalBranchStatistics
import ai.chainfed.v1.assignment
import ai.chainfed.v1.blobRef
import ai.chainfed.v1.checkInResponse
import ai.chainfed.v1.evaluateTask
import ai.chainfed.v1.finished
import ai.chainfed.v1.namedBlob
import ai.chainfed.v1.profileTask
import ai.chainfed.v1.trainTask
import ai.chainfed.v1.wait
import ai.chainfed.v1.warmupTask
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File
import java.io.RandomAccessFile
import java.security.KeyFactory
import java.security.Signature
import java.security.spec.X509EncodedKeySpec

/** A whole device on the real runtime and a tiny bundle, against a coordinator in this process. */
class DeviceTest {
    @get:Rule
    val folder = TemporaryFolder()

    @get:Rule
    val server = FakeCoordinator()

    private val source = File(Vectors.folder, "bundles/encoder/bundle")
    private val events = ArrayList<DeviceEvent>()
    private val labels = listOf("animals", "food", "machines")
    private val texts = listOf("the old dog saw a fox", "bread and honey", "we saw an engine near a pump")
    private val examples = List(7) { Example(texts[it % 3], labels[it % 3]) }

    private fun device(
        state: String = "state",
        source: ExampleSource = ExampleSource.text(examples, examples.take(4)),
        policy: WorkPolicy = WorkPolicy { null },
        settings: (File) -> DeviceSettings = { DeviceSettings("here:7700", it, "test") },
    ) = Device(settings(File(folder.root, state)), server.channel, source, policy) { events += it }

    private fun put(file: String) = server.put(File(source, file).readBytes())

    private fun task(set: AssignmentKt.Dsl.() -> Unit): Assignment =
        assignment {
            assignmentId = "a".repeat(32)
            round = 3
            manifest = put("manifest.json")
            for (name in manifestFiles()) {
                files +=
                    namedBlob {
                        this.name = name
                        blob = put(name)
                    }
            }
            state +=
                namedBlob {
                    name = "all"
                    blob = put("adapters.safetensors")
                }
            foatStart = 1
            seed = 11
            set()
        }

    private fun manifestFiles(): List<String> =
        readManifest(File(source, "manifest.json").readBytes(), "The manifest").files.keys.filter {
            it.startsWith("programs/") || it.startsWith("weights/") || it == Manifest.TOKENIZER_FILE
        }

    private fun training(set: AssignmentKt.Dsl.() -> Unit = {}): Assignment =
        task {
            train =
                trainTask {
                    firstLayer = 1
                    windowSize = 1
                    localEpochs = 2
                    adapterLr = 0.01f
                    headLr = 0.01f
                    finalHeadLr = 0.01f
                    globalLossWeight = 0.3f
                    globalBranchStatistics = GlobalBranchStatistics.GLOBAL_BRANCH_STATISTICS_WINDOW_END
                }
            set()
        }

    private fun evaluation(): Assignment = task { evaluate = evaluateTask { maxExamples = 0 } }

    private fun give(vararg assignments: Assignment) {
        assignments.forEach { server.answers += checkInResponse { assignment = it } }
    }

    private fun finish() {
        server.answers += checkInResponse { finished = finished { reason = "The run is over." } }
    }

    private fun waiting(): CheckInResponse =
        checkInResponse {
            wait =
                wait {
                    retryAfterMs = 50
                    reason = "the run waits for devices"
                }
        }

    private fun names(tensors: ByteArray): Set<String> {
        val file = folder.newFile().also { it.writeBytes(tensors) }
        return RandomAccessFile(file, "r").use { readTensorLayout(it.channel).keys }
    }

    @Test
    fun `all four tasks, one after the other`() {
        val profiling = task { profile = profileTask { maxExamples = 5 } }
        val heads =
            warmupTask {
                headLayers += listOf(1)
                localEpochs = 1
                headLr = 0.1f
            }
        give(profiling, task { warmup = heads }, training(), evaluation())
        finish()
        val report = runBlocking { device().run() }
        assertEquals(mapOf("profile" to 1, "warmup" to 1, "train" to 1, "evaluate" to 1), report.assignments)
        assertEquals(DeviceReport.End.FINISHED, report.end)
        assertEquals("The run is over.", report.reason)

        val profile = server.profiles.single()
        assertEquals(5L, profile.numExamples)
        assertTrue(profile.scoresList.size == 2 && profile.scoresList.all { it in 0.0..1.0 })
        val statistics = listOf(0, 1).flatMap { listOf("statistics.$it.mean", "statistics.$it.variance") }
        assertEquals(statistics.toSet(), names(profile.statistics.toByteArray()))
        assertEquals(setOf("heads.1.weight", "heads.1.bias"), names(server.updates[0]))
        val trained = setOf("adapters.1.down", "adapters.1.up", "heads.1.weight", "heads.1.bias")
        assertEquals(trained, names(server.updates[1]))
        val metrics = server.headers[1].metrics
        assertEquals(listOf(7L, 6L), listOf(metrics.numExamples, metrics.numSteps))
        assertTrue(metrics.loss > 0 && metrics.accuracy in 0.0..1.0)
        val evaluation = server.evaluations.single()
        assertEquals(4L, evaluation.numExamples)
        assertTrue(evaluation.numCorrect in 0..4 && evaluation.lossSum > 0)

        assertEquals(listOf(7L, 4L), server.checkIns[0].let { listOf(it.numTrainExamples, it.numTestExamples) })
        assertEquals(server.updates.sumOf { it.size } + profile.statistics.size().toLong(), report.bytesUp)
        assertEquals(server.blobs.values.sumOf { it.size }.toLong(), report.bytesDown)
        assertEquals(0, File(folder.root, "state/work").list()!!.size)
        assertTrue(events.any { it.toString() == "Round 3: Handed in." })
    }

    @Test
    fun `cancelled after any batch or step it goes on and hands in the same bytes`() {
        give(training())
        runBlocking { device("straight") { DeviceSettings("here:7700", it, "test", once = true) }.run() }
        var cancellations = 0
        give(*Array(40) { training() })
        while (server.updates.size < 2) {
            runBlocking {
                var calls = 0
                var job: Job? = null
                val policy =
                    WorkPolicy {
                        if (++calls == 4) job?.cancel(CancellationException("the app ended"))
                        null
                    }
                val device =
                    device("cancelled", policy = policy) { DeviceSettings("here:7700", it, "test", once = true) }
                job = launch(Dispatchers.Default) { device.run() }
                job.join()
                if (job.isCancelled) cancellations++
            }
        }
        assertTrue("$cancellations", cancellations > 3)
        assertArrayEquals(server.updates[0], server.updates[1])
        assertEquals(0, server.abandoned.size)
    }

    @Test
    fun `a policy that objects at first leaves before it asks for work`() {
        val report = runBlocking { device(policy = { "not charging" }).run() }
        assertEquals(DeviceReport.End.POLICY, report.end)
        assertEquals("The work policy does not hold: not charging.", report.reason)
        assertTrue(server.checkIns.isEmpty())
    }

    @Test
    fun `a policy that objects while it works ends the work at once`() {
        for (holds in 2..9) {
            give(training())
            var calls = 0
            val policy = WorkPolicy { if (++calls > holds) "too warm" else null }
            val report = runBlocking { device("state $holds", policy = policy).run() }
            // Asked when it objected, and once more before the next assignment.
            assertEquals(holds + 2, calls)
            assertEquals(DeviceReport.End.POLICY, report.end)
            assertEquals(mapOf("abandoned" to 1), report.assignments)
            assertEquals(AbandonReason.ABANDON_REASON_POLICY, server.abandoned.last().reason)
            assertEquals("The work policy does not hold: too warm.", server.abandoned.last().detail)
            assertEquals(0, File(folder.root, "state $holds/work").list()!!.size)
        }
    }

    @Test
    fun `a policy that holds again within the patience is waited for`() {
        give(training())
        finish()
        var calls = 0
        val policy = WorkPolicy { if (++calls == 4) "in use" else null }
        val settings = { state: File -> DeviceSettings("here:7700", state, "test", policyPatienceMillis = 60_000) }
        val report = runBlocking { device(policy = policy, settings = settings).run() }
        assertEquals(mapOf("train" to 1), report.assignments)
        val paused = events.single { it.kind == DeviceEvent.Kind.PAUSED }
        assertEquals("Round 3: The work policy does not hold: in use.", paused.toString())
    }

    @Test
    fun `what it hands in is signed`() {
        give(training(), evaluation())
        finish()
        val keys = SoftwareDeviceKeys(folder.newFile("key").also { it.delete() })
        runBlocking { device { DeviceSettings("here:7700", it, "test", keys = keys) }.run() }
        assertArrayEquals(keys.publicKey, server.enrolments.single().publicKey.toByteArray())
        val header = server.headers.single()
        val update = signedUpdate("a".repeat(32), header.update.sha256, 7)
        assertSigned(server.enrolments.single().publicKey.toByteArray(), update, header.signature.toByteArray())
        val counts = server.evaluations.single()
        val outcome = Outcome.Evaluation(counts.numExamples, counts.numCorrect, counts.lossSum)
        assertSigned(keys.publicKey, signedEvaluation("a".repeat(32), outcome), counts.signature.toByteArray())
    }

    private fun assertSigned(
        publicKey: ByteArray,
        text: ByteArray,
        signature: ByteArray,
    ) {
        val key = KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(publicKey))
        val verifier = Signature.getInstance("SHA256withECDSA").apply { initVerify(key) }
        verifier.update(text)
        assertTrue(verifier.verify(signature))
    }

    @Test
    fun `a coordinator that has forgotten it gets to know it again`() {
        server.failures += listOf(null, FakeCoordinator.refusal("NOT_FOUND", "no such device"))
        finish()
        assertEquals(DeviceReport.End.FINISHED, runBlocking { device().run() }.end)
        assertEquals(2, server.enrolments.size)
        assertEquals(server.enrolments[0].deviceKey, server.enrolments[1].deviceKey)
    }

    @Test
    fun `a token is asked for only when the coordinator refuses the device without one`() {
        var timesAsked = 0
        val settings = { state: File ->
            DeviceSettings("here:7700", state, "test", enrolmentToken = { "token ${++timesAsked}" })
        }
        finish()
        runBlocking { device(settings = settings).run() }
        assertEquals(0, timesAsked)
        server.failures += FakeCoordinator.refusal("UNAUTHORIZED", "no token")
        finish()
        runBlocking { device(settings = settings).run() }
        assertEquals(listOf("", "token 1"), server.enrolments.map { it.enrolmentToken })

        repeat(2) { server.failures += FakeCoordinator.refusal("UNAUTHORIZED", "another key") }
        assertThrows(ChainFedException.Unauthorized::class.java) { runBlocking { device(settings = settings).run() } }
        assertEquals(2, timesAsked)
    }

    @Test
    fun `a name that leads elsewhere is refused before anything is touched`() {
        val precious = File(folder.newFolder("precious"), "journal").apply { writeText("of somebody else") }
        val elsewhere =
            namedBlob {
                name = "all"
                blob = blobRef { sha256 = "../../../precious/journal" }
            }
        val harmful =
            listOf<AssignmentKt.Dsl.() -> Unit>(
                { assignmentId = "../../precious" },
                { assignmentId = "" },
                { manifest = elsewhere.blob },
                { files += elsewhere },
                { state += elsewhere },
                { clearTrain() },
            )
        for (harm in harmful) {
            give(training(harm))
            val refusal = assertThrows(ChainFedException.BadBundle::class.java) { runBlocking { device().run() } }
            assertTrue(refusal.message!!, refusal.message!!.startsWith("The coordinator sent a"))
            assertEquals(AbandonReason.ABANDON_REASON_BAD_BUNDLE, server.abandoned.last().reason)
        }
        assertEquals(harmful.size, server.abandoned.size)
        assertEquals("of somebody else", precious.readText())
        assertTrue(server.offsets.isEmpty())
    }

    @Test
    fun `what belongs to another bundle is removed when a result is in`() {
        val files = File(folder.root, "state/files").apply { mkdirs() }
        File(files, "b".repeat(64)).writeText("an older bundle's")
        File(files, "c".repeat(64) + ".part").writeText("a broken download")
        give(training())
        finish()
        runBlocking { device().run() }
        val manifest = readManifest(File(source, "manifest.json").readBytes(), "The manifest")
        val expected = manifestFiles().map { manifest.files.getValue(it).sha256 } + put("manifest.json").sha256
        assertEquals(expected.toSet(), files.list()!!.toSet())
    }

    @Test
    fun `with nothing to do for its patience it leaves`() {
        server.answers += listOf(waiting(), waiting())
        val report = runBlocking { device { DeviceSettings("here:7700", it, "test", idlePatienceMillis = 70) }.run() }
        assertEquals(DeviceReport.End.NOTHING_TO_DO, report.end)
        assertEquals("the run waits for devices", report.reason)
        assertEquals(2, server.checkIns.size)
    }

    @Test
    fun `work that it cannot do is given back, and the next one done`() {
        give(training { deadlineUnixMs = 1 }, training { foatStart = 2 }, evaluation())
        finish()
        val source = ExampleSource.text(examples)
        val report = runBlocking { device(source = source).run() }
        assertEquals(mapOf("abandoned" to 2, "train" to 1), report.assignments)
        val (late, untested) = server.abandoned
        assertEquals("The deadline passed before the work was done.", late.detail)
        assertEquals(AbandonReason.ABANDON_REASON_NO_EXAMPLES, untested.reason)
        assertEquals("The device has no held-out examples.", untested.detail)
    }

    @Test
    fun `work that needs more memory than it may use is given back`() {
        give(training())
        finish()
        val report = runBlocking { device { DeviceSettings("here:7700", it, "test", memoryBudgetBytes = 1) }.run() }
        assertEquals(mapOf("abandoned" to 1), report.assignments)
        assertEquals(AbandonReason.ABANDON_REASON_MEMORY, server.abandoned.single().reason)
        assertEquals(1L, server.checkIns[0].memoryBudgetBytes)
    }

    @Test
    fun `a result that the coordinator does not want any more is let go`() {
        server.failures += listOf(null, null, FakeCoordinator.refusal("NOT_FOUND", "no such assignment"))
        give(evaluation())
        finish()
        val report = runBlocking { device().run() }
        assertEquals(mapOf("abandoned" to 1), report.assignments)
        assertEquals("The coordinator refused: no such assignment", server.abandoned.single().detail)
    }

    @Test
    fun `data that cannot be used end it, and the operator hears nothing of them`() {
        give(training())
        val source = ExampleSource.text(examples + Example("secret", "robots"))
        val refusal =
            assertThrows(ChainFedException.BadInput::class.java) { runBlocking { device(source = source).run() } }
        assertTrue(refusal.message!!, refusal.message!!.startsWith("Item 8 of the example source has a label"))
        assertEquals(AbandonReason.ABANDON_REASON_NO_EXAMPLES, server.abandoned.single().reason)
        assertEquals("The device's data do not suit the task.", server.abandoned.single().detail)
    }

    @Test
    fun `a file that the manifest does not name ends it`() {
        val other =
            namedBlob {
                name = "weights/layer_00.safetensors"
                blob = put("weights/layer_01.safetensors")
            }
        give(training { files += other })
        val refusal = assertThrows(ChainFedException.BadBundle::class.java) { runBlocking { device().run() } }
        assertEquals(
            "The coordinator's weights/layer_00.safetensors is not the one that the manifest names; create a new run.",
            refusal.message,
        )
        assertEquals(AbandonReason.ABANDON_REASON_BAD_BUNDLE, server.abandoned.single().reason)
    }
}
