package ai.chainfed.android

import ai.chainfed.testing.Heard
import ai.chainfed.testing.InMemoryCoordinator
import androidx.work.NetworkType
import androidx.work.WorkManager
import androidx.work.WorkRequest
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner

/** What Android's scheduler is told of a policy. */
@RunWith(RobolectricTestRunner::class)
class ScheduleRobolectricTest {
    private val coordinator = InMemoryCoordinator(bundle("encoder"))

    @Before fun initialize(): Unit = initializeWorkManager()

    @After fun close(): Unit = coordinator.close()

    private fun request(rules: PolicyBuilder.() -> Unit) =
        WorkSchedule(application, PolicyBuilder().apply(rules).build()).request()

    @Test fun `the strictest policy asks for every constraint`() {
        val spec =
            request {
                charging()
                idle()
                unmetered()
                batteryAbove(30)
                storage(500.megabytes)
                checkInEvery(60)
            }.workSpec

        assertTrue(spec.constraints.requiresCharging())
        assertTrue(spec.constraints.requiresDeviceIdle())
        assertTrue(spec.constraints.requiresBatteryNotLow())
        assertTrue(spec.constraints.requiresStorageNotLow())
        assertEquals(NetworkType.UNMETERED, spec.constraints.requiredNetworkType)
        assertEquals(3_600_000L, spec.intervalDuration)
    }

    @Test fun `without a word about them nothing but a network is asked for`() {
        val spec = request {}.workSpec

        assertFalse(spec.constraints.requiresCharging())
        assertFalse(spec.constraints.requiresDeviceIdle())
        assertFalse(spec.constraints.requiresBatteryNotLow())
        assertFalse(spec.constraints.requiresStorageNotLow())
        assertEquals(NetworkType.NOT_ROAMING, spec.constraints.requiredNetworkType)
        assertEquals(NetworkType.CONNECTED, request { roaming() }.workSpec.constraints.requiredNetworkType)
        assertEquals(WorkRequest.DEFAULT_BACKOFF_DELAY_MILLIS, spec.backoffDelayDuration)
    }

    @Test fun `values that cannot be are named`() {
        for (wrong in listOf<PolicyBuilder.() -> Unit>(
            { batteryAbove(101) },
            { storage(-1) },
            { checkInEvery(14) },
            { memory(0) },
            { patience(-1) },
            { threads(0) },
        )) {
            val error = runCatching { PolicyBuilder().wrong() }.exceptionOrNull()
            assertTrue("$error", error is IllegalArgumentException && error.message!!.endsWith("."))
        }
    }

    @Test fun `WorkManager starts the worker that the schedule names`() {
        val chainFed = configure(coordinator.train(0, 1))
        chainFed.enable().done()
        val id = scheduledWork().single().id
        val worker = startWorker(id)

        assertEquals(androidx.work.ListenableWorker.Result.success(), worker)
        assertEquals(1, coordinator.heard.filterIsInstance<Heard.Update>().size)
        assertEquals(
            1,
            WorkManager.getInstance(application).getWorkInfosForUniqueWork(WorkSchedule.UNIQUE_NAME).get().size,
        )
    }
}
