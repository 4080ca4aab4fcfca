package ai.chainfed.android

import androidx.concurrent.futures.CallbackToFutureAdapter
import androidx.work.Data
import androidx.work.ForegroundInfo
import androidx.work.ForegroundUpdater
import androidx.work.ListenableWorker
import androidx.work.ProgressUpdater
import androidx.work.WorkManager
import androidx.work.WorkerParameters
import androidx.work.impl.WorkManagerImpl
import kotlinx.coroutines.Dispatchers
import java.util.UUID
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit

/** Makes the worker as WorkManager's factory does, has it work, and gives what it ended with. */
internal fun startWorker(
    id: UUID,
    onForeground: (ForegroundInfo) -> Unit = {},
): ListenableWorker.Result {
    val manager = WorkManager.getInstance(application) as WorkManagerImpl
    val background = Executors.newSingleThreadExecutor()
    val done = ProgressUpdater { _, _, _ -> CallbackToFutureAdapter.getFuture { it.set(null) } }
    val foreground =
        ForegroundUpdater { _, _, info ->
            onForeground(info)
            CallbackToFutureAdapter.getFuture { it.set(null) }
        }
    val factory = manager.configuration.workerFactory
    val parameters =
        WorkerParameters(
            id,
            Data.EMPTY,
            emptyList(),
            WorkerParameters.RuntimeExtras(),
            1,
            0,
            background,
            Dispatchers.Default,
            manager.workTaskExecutor,
            factory,
            done,
            foreground,
        )
    val worker = factory.createWorkerWithDefaultFallback(application, ChainFedWorker::class.java.name, parameters)
    try {
        return worker.startWork().get(PATIENCE_SECONDS, TimeUnit.SECONDS)
    } finally {
        background.shutdownNow()
    }
}
