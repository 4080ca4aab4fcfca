package ai.chainfed.android

import ai.chainfed.testing.InMemoryCoordinator
import android.app.Notification
import android.app.NotificationManager
import android.content.pm.ServiceInfo
import androidx.work.ForegroundInfo
import androidx.work.ListenableWorker.Result
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.shadows.ShadowLog
import java.util.UUID

/** What WorkManager starts, made by WorkManager's own factory. */
@RunWith(RobolectricTestRunner::class)
class WorkerRobolectricTest {
    private val coordinator = InMemoryCoordinator(bundle("encoder"))

    @Before fun initialize(): Unit = initializeWorkManager()

    @After fun close(): Unit = coordinator.close()

    @Test fun `long work goes to the foreground with the notification that the app described`() {
        coordinator.train(0, 1)
        configure(coordinator) {
            notification {
                channel("learning", "Learning")
                title("Getting better")
                text("On this phone alone")
                id(77)
            }
        }.enable().done()
        val shown = ArrayList<ForegroundInfo>()

        assertEquals(Result.success(), startWorker(UUID.randomUUID(), shown::add))

        val info = shown.single()
        assertEquals(77, info.notificationId)
        assertEquals(ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC, info.foregroundServiceType)
        assertEquals("learning", info.notification.channelId)
        assertEquals("Getting better", info.notification.extras.getString(Notification.EXTRA_TITLE))
        assertEquals("On this phone alone", info.notification.extras.getString(Notification.EXTRA_TEXT))
        val channel = application.getSystemService(NotificationManager::class.java)!!.getNotificationChannel("learning")
        assertEquals("Learning", channel.name)
        assertEquals(NotificationManager.IMPORTANCE_LOW, channel.importance)
    }

    @Test fun `where Android does not allow the foreground the work is done without`() {
        coordinator.train(0, 1)
        val chainFed = configure(coordinator)
        chainFed.enable().done()

        assertEquals(Result.success(), startWorker(UUID.randomUUID()) { throw IllegalStateException("not now") })

        assertEquals(1, chainFed.status.value.roundsDone)
    }

    @Test fun `where Android denies the permission the work is done without`() {
        coordinator.train(0, 1)
        val chainFed = configure(coordinator)
        chainFed.enable().done()

        assertEquals(Result.success(), startWorker(UUID.randomUUID()) { throw SecurityException("no permission") })

        assertEquals(1, chainFed.status.value.roundsDone)
    }

    @Test fun `work that starts before the app configured ChainFed is tried again and says why`() {
        ChainFed.forgetConfiguration()

        assertEquals(Result.retry(), startWorker(UUID.randomUUID()))

        assertTrue(ShadowLog.getLogsForTag("ChainFed").any { "Application.onCreate" in it.msg })
    }
}
