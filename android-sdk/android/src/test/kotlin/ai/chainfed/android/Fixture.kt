package ai.chainfed.android

import ai.chainfed.core.DeviceKeys
import ai.chainfed.core.DeviceStateSource
import ai.chainfed.core.Example
import ai.chainfed.core.ExampleSource
import ai.chainfed.core.SoftwareDeviceKeys
import ai.chainfed.testing.FakeDeviceState
import ai.chainfed.testing.InMemoryCoordinator
import android.app.Application
import androidx.work.Configuration
import androidx.work.ListenableWorker
import androidx.work.WorkInfo
import androidx.work.WorkManager
import androidx.work.impl.WorkManagerImpl
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.robolectric.RuntimeEnvironment
import java.io.File
import java.nio.file.Files
import java.util.concurrent.CompletableFuture
import java.util.concurrent.Executor
import java.util.concurrent.TimeUnit

internal val application: Application
    get() = RuntimeEnvironment.getApplication()

internal val stateFolder: File
    get() = File(application.noBackupFilesDir, "chainfed")

internal fun bundle(name: String): File = File(System.getProperty("chainfed.vectors"), "bundles/$name/bundle")

internal val texts: List<Example> =
    listOf(
        Example("the old dog saw a fox", "animals"),
        Example("bread and honey", "food"),
        Example("we saw an engine near a pump", "machines"),
        Example("a fox and a dog", "animals"),
        Example("honey today", "food"),
        Example("a crane and an engine", "machines"),
        Example("the dog", "animals"),
    )

/** A new WorkManager, everything on the thread that asks. (WorkManager.initialize would keep the first test's.) */
internal fun initializeWorkManager() {
    val here = Executor { it.run() }
    val configuration = Configuration.Builder().setExecutor(here).setTaskExecutor(here).build()
    WorkManagerImpl.setDelegate(WorkManagerImpl(application, configuration))
}

internal fun scheduledWork(): List<WorkInfo> =
    WorkManager
        .getInstance(application)
        .getWorkInfosForUniqueWork(WorkSchedule.UNIQUE_NAME)
        .get()
        .filter { !it.state.isFinished }

/** The signing key in a file beside the state, so that deleting the state leaves it. */
internal fun softwareKeys(): DeviceKeys = SoftwareDeviceKeys(File(Files.createTempDirectory("keys").toFile(), "key"))

/** ChainFed over a coordinator in memory, as if in a new process. */
internal fun configure(
    coordinator: InMemoryCoordinator,
    state: DeviceStateSource = FakeDeviceState(),
    keys: DeviceKeys = softwareKeys(),
    more: ChainFedBuilder.() -> Unit = {},
): ChainFed =
    ChainFed.configure(application) {
        channel(coordinator::connect)
        enrolment { "token" }
        examples { ExampleSource.text(texts, texts.take(3)) }
        deviceState(state)
        keys(keys)
        // The device of Robolectric has no charger: WorkManager starts nothing beside what a test starts.
        policy { charging() }
        more()
    }

/** One stretch of work, as WorkManager would have it done. */
internal fun ChainFed.workNow(foreground: suspend (LongWorkNotification) -> Unit = {}): ListenableWorker.Result =
    runBlocking(Dispatchers.Default) { withTimeout(PATIENCE_SECONDS * 1_000) { work(foreground) } }

internal fun <T> CompletableFuture<T>.done(): T = get(PATIENCE_SECONDS, TimeUnit.SECONDS)

internal const val PATIENCE_SECONDS = 60L
