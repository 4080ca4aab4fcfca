package ai.chainfed.android

import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.core.ChainFedException
import ai.chainfed.core.DeviceKeys
import ai.chainfed.core.Example
import ai.chainfed.core.ExampleSource
import ai.chainfed.testing.FakeDeviceState
import ai.chainfed.testing.Heard
import ai.chainfed.testing.InMemoryCoordinator
import androidx.work.ListenableWorker.Result
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.shadows.ShadowLog
import java.io.File
import java.io.IOException

/** What fails is told by its kind, with what helps, and nothing of the app's own messages. */
@RunWith(RobolectricTestRunner::class)
class FailureRobolectricTest {
    private val coordinator = InMemoryCoordinator(bundle("encoder"))
    private val guarded = GuardedCoordinator("right")

    @Before fun initialize(): Unit = initializeWorkManager()

    @After fun close() {
        coordinator.close()
        guarded.close()
    }

    /** Works once and gives the failure, in which nobody finds the [SECRET]. */
    private fun failureOf(
        state: FakeDeviceState = FakeDeviceState(),
        keys: DeviceKeys = softwareKeys(),
        more: ChainFedBuilder.() -> Unit = {},
    ): State.Failed {
        val chainFed = configure(coordinator, state, keys, more).also { it.enable().done() }

        assertEquals(Result.retry(), chainFed.workNow())

        val status = chainFed.status.value
        val failed = status.state as State.Failed
        assertEquals(failed.error, status.lastError)
        assertFalse(SECRET in "$status ${failed.error.stackTraceToString()}")
        assertFalse(ShadowLog.getLogs().any { SECRET in "${it.msg} ${it.throwable?.stackTraceToString()}" })
        return failed
    }

    private fun tokenFailureOf(token: suspend () -> String) =
        failureOf {
            channel(guarded::connect)
            enrolment(token)
        }

    private fun examplesFailureOf(training: Flow<Example>) =
        failureOf { examples { ExampleSource.text(training) } }.also {
            assertTrue("${it.error}", it.error is ChainFedException.BadInput)
            assertEquals(Remedy.CHECK_APP, it.remedy)
        }

    @Test fun `a token that cannot be had is waited for`() {
        val failed = tokenFailureOf { throw IOException(SECRET) }

        assertTrue(failed.error is ChainFedException.Unreachable)
        assertEquals(
            "The app's enrolment token could not be had (IOException); it is tried again.",
            failed.error.message,
        )
        assertEquals(Remedy.WAIT, failed.remedy)
    }

    @Test fun `a time limit of the app is no word of Android's`() {
        val token = tokenFailureOf { withTimeout(1) { awaitCancellation() } }
        assertTrue("${token.error}", token.error is ChainFedException.Unreachable)

        examplesFailureOf(flow { withTimeout(1) { awaitCancellation() } })

        val provider = failureOf { examples { runBlocking { withTimeout(1) { awaitCancellation() } } } }
        assertTrue("${provider.error}", provider.error is ChainFedException.BadInput)
    }

    @Test fun `a token that is refused is the app's to correct`() {
        val failed = tokenFailureOf { "wrong" }

        assertTrue(failed.error is ChainFedException.Unauthorized)
        assertEquals(Remedy.CHECK_APP, failed.remedy)
    }

    @Test fun `a token of a callable is taken`() {
        val chainFed =
            configure(coordinator) {
                channel(guarded::connect)
                enrolmentToken { "right" }
            }
        chainFed.enable().done()

        assertEquals(Result.success(), chainFed.workNow())

        assertEquals(State.Finished("It is over."), chainFed.status.value.state)
    }

    @Test fun `a device that is known with another key begins anew`() {
        configure(coordinator).also { it.enable().done() }.workNow()

        val failed = failureOf()

        assertTrue(failed.error is ChainFedException.Unauthorized)
        assertEquals(Remedy.DELETE_DATA, failed.remedy)
    }

    @Test fun `a flow of examples that fails is the app's to correct`() {
        val failed = examplesFailureOf(flow { throw IOException("$SECRET: No space left on device") })

        assertEquals(
            "The example source failed with java.io.IOException; look into the app's examples.",
            failed.error.message,
        )
    }

    @Test fun `an example provider that fails is the app's to correct, whatever it throws`() {
        for (thrown in listOf(IOException(SECRET), StackOverflowError(SECRET), AssertionError(SECRET))) {
            val failed = failureOf { examples { throw thrown } }

            assertTrue(failed.error.message, thrown.javaClass.name in failed.error.message!!)
            assertEquals(Remedy.CHECK_APP, failed.remedy)
        }
    }

    @Test fun `a device state that cannot be read is told`() {
        val failed = failureOf(FakeDeviceState { error(SECRET) })

        assertTrue(failed.error.message, "IllegalStateException" in failed.error.message!!)
    }

    @Test fun `a state folder that fails is not the examples' fault`() {
        val failed = failureOf(keys = keysThatFail("read failed: EIO (I/O error)"))

        assertTrue("${failed.error}", failed.error is ChainFedException.Other)
        assertTrue(failed.error.message, failed.error.message!!.startsWith("The device's storage failed ("))
        assertEquals(Remedy.WAIT, failed.remedy)
    }

    /** Where a file of the device's would fail. */
    private fun keysThatFail(message: String) =
        object : DeviceKeys by softwareKeys() {
            override val publicKey: ByteArray
                get() = throw IOException(message)
        }

    @Test fun `a storage without room is the user's to free`() {
        val failed = failureOf(keys = keysThatFail("write failed: ENOSPC (No space left on device)"))

        assertTrue("${failed.error}", failed.error is ChainFedException.StorageFull)
        assertEquals(Remedy.FREE_STORAGE, failed.remedy)
    }

    @Test fun `figures that cannot be stored cost no work`() {
        coordinator.train(0, 1)
        assertTrue(File(stateFolder, "figures.json.new/in the way").mkdirs())
        val chainFed = configure(coordinator).also { it.enable().done() }

        assertEquals(Result.success(), chainFed.workNow())

        assertEquals(emptyList<Heard>(), coordinator.heard.filterIsInstance<Heard.Abandonment>())
        assertEquals(1, coordinator.heard.filterIsInstance<Heard.Update>().size)
        assertEquals(1, chainFed.status.value.roundsDone)
    }

    @Test fun `why an assignment was given back is the last error`() {
        coordinator.train(0, 1)
        val chainFed =
            configure(coordinator) {
                policy {
                    charging()
                    memory(1)
                }
            }
        chainFed.enable().done()

        assertEquals(Result.success(), chainFed.workNow())

        assertTrue(chainFed.status.value.state is State.Finished)
        assertTrue("${chainFed.status.value}", chainFed.status.value.lastError is ChainFedException.MemoryBudget)
        assertTrue(configure(coordinator).status.value.lastError is ChainFedException.MemoryBudget)
    }

    private companion object {
        const val SECRET = "SECRET-4711"
    }
}
