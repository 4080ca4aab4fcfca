package ai.chainfed.android

import android.content.Context
import android.util.Log
import androidx.work.CoroutineWorker
import androidx.work.ForegroundInfo
import androidx.work.WorkerParameters
import kotlinx.coroutines.CancellationException

/**
 * What WorkManager starts. It does nothing unless the user has agreed.
 *
 * Android may start the process for it. Where the app has not configured ChainFed by then it cannot work, says so in
 * the log and is tried again with growing pauses.
 */
internal class ChainFedWorker(
    context: Context,
    parameters: WorkerParameters,
) : CoroutineWorker(context, parameters) {
    override suspend fun doWork(): Result {
        val chainFed = ChainFed.configured
        if (chainFed == null) {
            Log.w(TAG, "The work started before ChainFed.configure; call it in the app's Application.onCreate.")
            return Result.retry()
        }
        return chainFed.work { notification -> show(notification) }
    }

    override suspend fun getForegroundInfo(): ForegroundInfo =
        (ChainFed.configured?.configuration?.notification ?: NotificationBuilder().build()).foregroundInfo(
            applicationContext,
        )

    /** Goes on in the foreground, where Android gives more than ten minutes; where it does not allow that, without. */
    private suspend fun show(notification: LongWorkNotification) {
        try {
            setForeground(notification.foregroundInfo(applicationContext))
        } catch (stopped: CancellationException) {
            throw stopped // It is an IllegalStateException.
        } catch (error: IllegalStateException) {
            tell(error)
        } catch (error: SecurityException) {
            tell(error)
        }
    }

    private fun tell(error: Exception) {
        Log.i(TAG, "Android does not allow work in the foreground now (${error.javaClass.simpleName}).")
    }

    private companion object {
        const val TAG = "ChainFed"
    }
}
