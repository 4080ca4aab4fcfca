package ai.chainfed.android

import android.content.Context
import androidx.work.BackoffPolicy
import androidx.work.Constraints
import androidx.work.ExistingPeriodicWorkPolicy
import androidx.work.NetworkType
import androidx.work.PeriodicWorkRequest
import androidx.work.WorkManager
import androidx.work.WorkRequest
import androidx.work.await
import java.util.concurrent.TimeUnit

/**
 * The one piece of work that ChainFed has with Android's WorkManager. It survives the process and a restart of the
 * device.
 */
internal class WorkSchedule(
    private val context: Context,
    private val policy: Policy,
) {
    /**
     * Has the work done again and again while the policy's constraints hold; takes the place of what was scheduled
     * before.
     */
    suspend fun enqueue() {
        WorkManager
            .getInstance(context)
            .enqueueUniquePeriodicWork(UNIQUE_NAME, ExistingPeriodicWorkPolicy.UPDATE, request())
            .await()
    }

    /** Ends the work, also what is under way. */
    suspend fun cancel() {
        WorkManager.getInstance(context).cancelUniqueWork(UNIQUE_NAME).await()
    }

    internal fun request(): PeriodicWorkRequest {
        val builder =
            PeriodicWorkRequest
                .Builder(ChainFedWorker::class.java, policy.checkInMinutes, TimeUnit.MINUTES)
                .setConstraints(constraints())
        // WorkManager refuses both together: when an idle device comes again, nobody knows.
        if (!policy.rules.idle) {
            builder.setBackoffCriteria(
                BackoffPolicy.EXPONENTIAL,
                WorkRequest.DEFAULT_BACKOFF_DELAY_MILLIS,
                TimeUnit.MILLISECONDS,
            )
        }
        return builder.build()
    }

    private fun constraints(): Constraints {
        val rules = policy.rules
        val network =
            when {
                rules.unmetered -> NetworkType.UNMETERED
                rules.roaming -> NetworkType.CONNECTED
                else -> NetworkType.NOT_ROAMING
            }
        return Constraints
            .Builder()
            .setRequiredNetworkType(network)
            .setRequiresCharging(rules.charging)
            .setRequiresDeviceIdle(rules.idle)
            .setRequiresBatteryNotLow(rules.minBatteryPercent > 0)
            .setRequiresStorageNotLow(rules.minFreeStorageBytes > 0)
            .build()
    }

    companion object {
        const val UNIQUE_NAME: String = "ai.chainfed.device"
    }
}
