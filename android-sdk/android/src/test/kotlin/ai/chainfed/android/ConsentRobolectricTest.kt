package ai.chainfed.android

import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.testing.Heard
import ai.chainfed.testing.InMemoryCoordinator
import androidx.work.ListenableWorker.Result
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import java.io.File

/** Nothing runs that the user did not agree to, and nothing stays that they want gone. */
@RunWith(RobolectricTestRunner::class)
class ConsentRobolectricTest {
    private val coordinator = InMemoryCoordinator(bundle("encoder"))

    @Before fun initialize(): Unit = initializeWorkManager()

    @After fun close(): Unit = coordinator.close()

    @Test fun `before the consent nothing is scheduled, stored or sent`() {
        val chainFed = configure(coordinator)

        assertEquals(Result.success(), chainFed.workNow())

        assertEquals(State.Disabled, chainFed.status.value.state)
        assertEquals(emptyList<Any>(), scheduledWork())
        assertEquals(emptyList<Heard>(), coordinator.heard)
        assertFalse("something was stored", stateFolder.exists())
    }

    @Test fun `the consent outlives the process`() {
        configure(coordinator).enable().done()

        val next = configure(coordinator)

        assertEquals(WaitReason.SCHEDULED, (next.status.value.state as State.Waiting).reason)
        assertEquals(1, scheduledWork().size)
        next.workNow()
        assertTrue(coordinator.heard.first() is Heard.Enrolment)
    }

    @Test fun `enabling twice schedules once`() {
        val chainFed = configure(coordinator)
        chainFed.enable().done()
        val first = scheduledWork().single().id

        chainFed.enable().done()

        assertEquals(first, scheduledWork().single().id)
    }

    @Test fun `a changed policy is scheduled anew at the next start, an unchanged one is not`() {
        configure(coordinator).enable().done()
        val generation = scheduledWork().single().generation
        configure(coordinator).enable().done()
        val next = configure(coordinator) { policy { charging() } }
        next.enable().done()

        assertTrue(scheduledWork().single().constraints.requiresCharging())
        assertTrue(scheduledWork().single().generation > generation)
    }

    @Test fun `when the user agrees no more, the work is cancelled and nothing more is said`() {
        val chainFed = configure(coordinator)
        chainFed.enable().done()

        chainFed.disable().done()

        assertEquals(emptyList<Any>(), scheduledWork())
        assertEquals(State.Disabled, chainFed.status.value.state)
        assertEquals(Result.success(), chainFed.workNow())
        assertEquals(emptyList<Heard>(), coordinator.heard)
        assertEquals(State.Disabled, configure(coordinator).status.value.state)
    }

    @Test fun `everything can be deleted, and the coordinator then sees a new device`() {
        val chainFed = configure(coordinator.train(0, 1))
        chainFed.enable().done()
        chainFed.workNow()
        assertEquals(1, chainFed.status.value.roundsDone)
        assertTrue(File(stateFolder, "device").isDirectory)

        chainFed.disable(deleteData = true).done()

        assertFalse("${stateFolder.walk().toList()}", stateFolder.exists())
        assertEquals(0, chainFed.status.value.roundsDone)
        chainFed.enable().done()
        chainFed.workNow()
        val (before, after) = coordinator.heard.filterIsInstance<Heard.Enrolment>()
        assertNotEquals(before.deviceId, after.deviceId)
    }

    @Test fun `a deletion that the process did not live to finish is finished by the next one`() {
        configure(coordinator).enable().done()
        LocalState(stateFolder).consent = LocalState.Consent(isGiven = false, mustDelete = true)
        File(stateFolder, "device").mkdirs()

        val next = configure(coordinator)
        next.disable().done()

        assertFalse(File(stateFolder, "device").exists())
    }

    @Test fun `a damaged consent is none`() {
        configure(coordinator).enable().done()
        File(stateFolder, "consent.json").writeText("{")

        assertEquals(State.Disabled, configure(coordinator).status.value.state)
    }

    @Test fun `state lies where no backup takes it`() {
        configure(coordinator).enable().done()

        assertTrue(stateFolder.path.startsWith(application.noBackupFilesDir.path))
        val elsewhere = listOf(application.filesDir, application.cacheDir).flatMap { it.walk().filter(File::isFile) }
        assertEquals(emptyList<File>(), elsewhere)
    }
}
