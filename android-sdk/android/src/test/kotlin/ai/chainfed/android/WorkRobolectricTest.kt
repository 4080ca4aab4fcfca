package ai.chainfed.android

import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.core.ChainFedException
import ai.chainfed.core.Example
import ai.chainfed.core.ExampleSource
import ai.chainfed.core.Heat
import ai.chainfed.testing.FakeDeviceState
import ai.chainfed.testing.Heard
import ai.chainfed.testing.InMemoryCoordinator
import ai.chainfed.v1.AbandonReason
import androidx.work.ListenableWorker.Result
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.runBlocking
import org.junit.After
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.shadows.ShadowLog
import java.io.File

/** Whole assignments on ExecuTorch's own runtime, under a policy. */
@RunWith(RobolectricTestRunner::class)
class WorkRobolectricTest {
    private val coordinator = InMemoryCoordinator(bundle("encoder"))
    private val keys = softwareKeys()

    @Before fun initialize(): Unit = initializeWorkManager()

    @After fun close(): Unit = coordinator.close()

    private fun enabled(
        state: FakeDeviceState = FakeDeviceState(),
        more: ChainFedBuilder.() -> Unit = {},
    ): ChainFed = configure(coordinator, state, keys, more).also { it.enable().done() }

    private inline fun <reified T : Heard> heard(): List<T> = coordinator.heard.filterIsInstance<T>()

    @Test fun `every kind of round is done, signed and counted`() {
        coordinator
            .profile()
            .warmUp()
            .train(0, 2)
            .evaluate()
        val chainFed = enabled()

        assertEquals(Result.success(), chainFed.workNow())

        assertEquals(emptyList<String>(), heard<Heard.Abandonment>().map { it.detail })
        assertEquals(2, heard<Heard.Profile>().single().scores.size)
        val (warmup, train) = heard<Heard.Update>()
        assertEquals(texts.size.toLong(), warmup.metrics.numExamples)
        assertEquals(3L, train.metrics.numSteps)
        assertTrue(train.tensors.isNotEmpty())
        assertEquals(3L, heard<Heard.Evaluation>().single().numExamples)
        assertArrayEquals(keys.publicKey, heard<Heard.Enrolment>().single().publicKey)
        assertEquals("", heard<Heard.Enrolment>().single().token) // This coordinator asks for none.
        val status = chainFed.status.value
        assertEquals(State.Finished("Every queued task is done."), status.state)
        assertEquals(4, status.roundsDone)
        assertTrue("$status", status.bytesDown > 0 && status.bytesUp > 0 && status.peakMemoryBytes > 0)
        assertEquals(null, status.lastError)
    }

    @Test fun `the figures outlive the process`() {
        coordinator.train(0, 1)
        val before = enabled().also { it.workNow() }.status.value

        val after = configure(coordinator).status.value

        assertEquals(before.copy(state = after.state), after)
        assertEquals(1, after.roundsDone)
    }

    @Test fun `work stops within one step when the policy is lost, is given back and done later`() {
        coordinator.train(0, 1, epochs = 20)
        val lost = 12
        val state = FakeDeviceState { if (it == lost) state = state.copy(isCharging = false) }
        val chainFed =
            enabled(state) {
                policy {
                    charging()
                    patience(0)
                }
            }

        assertEquals(Result.success(), chainFed.workNow())

        val given = heard<Heard.Abandonment>().single()
        assertEquals(AbandonReason.ABANDON_REASON_POLICY, given.reason)
        assertEquals("The work policy does not hold: not charging.", given.detail)
        // After every batch and step the state is read: what follows is the look before the next check-in alone.
        assertEquals(lost + 1, state.numReadings)
        assertEquals(emptyList<Heard>(), heard<Heard.Update>())
        assertEquals(State.Waiting(WaitReason.POLICY, "not charging"), chainFed.status.value.state)

        state.state = state.state.copy(isCharging = true)
        chainFed.workNow()

        assertEquals(20L * 3, heard<Heard.Update>().single().metrics.numSteps)
    }

    @Test fun `a short loss of the policy is waited for, and the same work goes on`() {
        coordinator.train(0, 1, epochs = 5)
        val shown = ArrayList<State>()
        lateinit var chainFed: ChainFed
        val state =
            FakeDeviceState {
                if (it == 8) state = state.copy(heat = Heat.SEVERE)
                if (it == 9) {
                    shown += chainFed.status.value.state
                    state = state.copy(heat = Heat.NONE)
                }
            }
        chainFed = enabled(state)

        chainFed.workNow()

        assertEquals(listOf(State.Waiting(WaitReason.POLICY, "too warm")), shown)
        assertEquals(emptyList<String>(), heard<Heard.Abandonment>().map { it.detail })
        assertEquals(15L, heard<Heard.Update>().single().metrics.numSteps)
    }

    @Test fun `stopped work goes on in another process, to the same bytes`() {
        coordinator.train(0, 2, epochs = 6)
        lateinit var stop: () -> Unit
        val state = FakeDeviceState { if (it == 14) stop() }
        val first = enabled(state)
        runBlocking(Dispatchers.Default) {
            val work = async { first.work { } }
            stop = { work.cancel() }
            assertTrue(runCatching { work.await() }.exceptionOrNull() is CancellationException)
        }
        assertEquals(WaitReason.STOPPED, (first.status.value.state as State.Waiting).reason)
        val given = heard<Heard.Assigned>().single().assignmentId
        val stopped = File(stateFolder, "device/work/$given/journal").readText()
        assertTrue(stopped, "\"step\":" in stopped && "\"outcome\":" !in stopped)

        configure(coordinator, keys = keys).workNow()

        assertEquals(given, heard<Heard.Assigned>()[1].assignmentId)
        assertEquals(emptyList<String>(), heard<Heard.Abandonment>().map { it.detail })
        val resumed = heard<Heard.Update>().first()
        assertEquals(given, resumed.assignmentId)
        InMemoryCoordinator(bundle("encoder")).use { other ->
            other.train(0, 2, epochs = 6)
            stateFolder.deleteRecursively()
            configure(other).also { it.enable().done() }.workNow()
            val whole = other.heard.filterIsInstance<Heard.Update>().single()
            assertArrayEquals(whole.tensors, resumed.tensors)
        }
    }

    @Test fun `without room on the storage no work begins`() {
        coordinator.train(0, 1)
        val state = FakeDeviceState()
        state.state = state.state.copy(freeStorageBytes = 499_999_999)
        val chainFed =
            enabled(state) {
                policy {
                    charging()
                    storage(500.megabytes)
                }
            }

        chainFed.workNow()

        assertEquals(emptyList<Heard>(), coordinator.heard)
        val expected = State.Waiting(WaitReason.POLICY, "less than 500 MB of storage is free")
        assertEquals(expected, chainFed.status.value.state)
    }

    @Test fun `storage that runs out while the work is done gives it back`() {
        coordinator.train(0, 1, epochs = 20)
        val state = FakeDeviceState { if (it == 10) state = state.copy(freeStorageBytes = 0) }
        enabled(state) {
            policy {
                charging()
                storage(1.megabytes)
                patience(0)
            }
        }.workNow()

        assertEquals(AbandonReason.ABANDON_REASON_POLICY, heard<Heard.Abandonment>().single().reason)
        assertEquals(emptyList<Heard>(), heard<Heard.Update>())
    }

    @Test fun `disabling ends the work under way`() {
        coordinator.train(0, 1, epochs = 200)
        lateinit var chainFed: ChainFed
        val state = FakeDeviceState { if (it == 10) chainFed.disable(deleteData = true) }
        chainFed = enabled(state)

        assertEquals(Result.success(), chainFed.workNow())
        chainFed.disable(deleteData = true).done()

        assertEquals(emptyList<Heard>(), heard<Heard.Update>())
        assertEquals(State.Disabled, chainFed.status.value.state)
        assertFalse(stateFolder.exists())
    }

    @Test fun `the battery that the work took is counted while no charger feeds the device`() {
        coordinator.train(0, 1, epochs = 3)
        val state =
            FakeDeviceState {
                if (it == 1) state = state.copy(isCharging = false)
                if (it == 4) state = state.copy(batteryPercent = 97)
                if (it == 6) state = state.copy(isCharging = true)
                if (it == 8) state = state.copy(batteryPercent = 90)
            }
        // For WorkManager Robolectric's device is never idle either.
        val chainFed = enabled(state) { policy { idle() } }

        chainFed.workNow()

        assertEquals(3, chainFed.status.value.battery.percent)
    }

    @Test fun `the notification of long work is asked for when there is an assignment, not before`() {
        val without = ArrayList<LongWorkNotification>()
        enabled().workNow { without += it }
        assertEquals(emptyList<Any>(), without)

        coordinator.train(0, 1)
        val with = ArrayList<LongWorkNotification>()
        enabled().workNow { with += it }
        assertEquals(1, with.size)

        coordinator.train(0, 1)
        enabled { withoutNotification() }.workNow { without += it }
        assertEquals(emptyList<Any>(), without)
    }

    @Test fun `examples that cannot be used are a typed failure that says nothing about them`() {
        coordinator.train(0, 1)
        val chainFed = enabled { examples { ExampleSource.text(listOf(Example("SECRET-4711", "no such label"))) } }

        assertEquals(Result.retry(), chainFed.workNow())

        val failed = chainFed.status.value.state as State.Failed
        assertTrue("$failed", failed.error is ChainFedException.BadInput)
        assertEquals(Remedy.CHECK_APP, failed.remedy)
        assertNothingTold("SECRET-4711", chainFed)
        assertEquals(failed.error.message, configure(coordinator).status.value.lastError?.message)
    }

    @Test fun `an app whose data access fails is told the kind of failure alone`() {
        coordinator.train(0, 1)
        val chainFed = enabled { examples { error("SECRET-4711") } }

        assertEquals(Result.retry(), chainFed.workNow())

        val failed = chainFed.status.value.state as State.Failed
        assertTrue("${failed.error.message}", "IllegalStateException" in failed.error.message.orEmpty())
        assertNothingTold("SECRET-4711", chainFed)
    }

    @Test fun `work leaves no word of an example behind`() {
        coordinator.train(0, 1).evaluate()
        val chainFed = enabled()
        chainFed.workNow()

        assertEquals(2, chainFed.status.value.roundsDone)
        assertNothingTold("the old dog", chainFed)
    }

    private fun assertNothingTold(
        secret: String,
        chainFed: ChainFed,
    ) {
        assertFalse(ShadowLog.getLogs().any { secret in "${it.msg} ${it.throwable?.stackTraceToString()}" })
        assertFalse(secret in chainFed.status.value.toString())
        assertFalse(heard<Heard.Abandonment>().any { secret in it.detail })
        val files = stateFolder.walk().filter(File::isFile).filter { secret in it.readText(Charsets.ISO_8859_1) }
        assertEquals(emptyList<File>(), files.toList())
    }

    @Test fun `a coordinator that does not answer is waited for by WorkManager`() {
        val chainFed = enabled { channel { throw java.net.UnknownHostException("no network") } }

        assertEquals(Result.retry(), chainFed.workNow())

        assertTrue(chainFed.status.value.lastError is ChainFedException.Unreachable)
        assertEquals(Remedy.WAIT, (chainFed.status.value.state as State.Failed).remedy)
    }
}
