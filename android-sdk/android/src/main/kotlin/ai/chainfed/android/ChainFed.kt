package ai.chainfed.android

import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.core.DeviceStateSource
import android.content.Context
import androidx.work.ListenableWorker.Result
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.async
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import java.io.Closeable
import java.io.File
import java.util.concurrent.CompletableFuture
import java.util.concurrent.Executor
import java.util.concurrent.atomic.AtomicReference

/**
 * Federated training in this app. One of these works in a process: the one that [configure] made last.
 *
 * Nothing runs before the user agreed and the app said so with [enable]. What ChainFed keeps lies in the app's
 * `noBackupFilesDir`, in the folder `chainfed`, and its signing key in the Android key store. Examples never leave the
 * device and are never logged. All members may be used on any thread.
 */
public class ChainFed internal constructor(
    private val context: Context,
    internal val configuration: Configuration,
) {
    private val local = LocalState(File(context.noBackupFilesDir, "chainfed"))
    private val schedule = WorkSchedule(context, configuration.policy)
    private val androidState by lazy { AndroidDeviceState(context) }
    private val keys by lazy { configuration.keys ?: KeystoreDeviceKeys(context) }
    private val tracker = StatusTracker(local, if (local.consent.isGiven) scheduled() else State.Disabled)

    /** Changes of what the user said, one after the other in the order of the calls. */
    private val changes = CoroutineScope(SupervisorJob() + Dispatchers.IO.limitedParallelism(1))
    private val change = Mutex()

    /** Whether the user took the consent back in this process; holds also where that could not be stored. */
    @Volatile private var isWithdrawn = false

    private val working = Mutex()
    private val session = AtomicReference<Job?>()

    /**
     * What ChainFed is doing. May be collected on any thread and never ends; the collector is cancelled with its own
     * scope, which changes nothing of the work. After a process death it begins with the figures that were stored last.
     */
    public val status: StateFlow<ChainFedStatus>
        get() = tracker.status

    /**
     * Calls [listener] on [executor] with the status now and whenever it changes, until the returned object is closed.
     * Closing may be done on any thread, also within the listener. Nothing of it survives a process death.
     */
    public fun addStatusListener(
        executor: Executor,
        listener: StatusListener,
    ): Closeable {
        val listening = CoroutineScope(executor.asCoroutineDispatcher()).launch { status.collect(listener::onStatus) }
        return Closeable { listening.cancel() }
    }

    /**
     * Says that the user agrees: from now on the work is done whenever the policy holds, also after the app was closed,
     * its process has died or the device was restarted, until [disable].
     *
     * May be called on any thread and does not block it; calling it again changes nothing. The future completes, on a
     * background thread, when the consent is stored and the work is scheduled: then both survive a process death.
     * Before that they may be lost. Cancelling the future does not take the consent back. A deletion that is not
     * finished is finished first.
     *
     * The future fails with an IOException when nothing can be stored, and with what WorkManager or the key store
     * threw; work that could not be scheduled is scheduled at the next [configure].
     */
    public fun enable(): CompletableFuture<Void?> =
        changed {
            finishDeletion()
            // Said to be scheduled only when it is: in between the process may die.
            local.consent = LocalState.Consent(isGiven = true)
            isWithdrawn = false
            if (tracker.status.value.state == State.Disabled) tracker.show(scheduled())
            scheduleWork()
        }

    /**
     * Says that the user agrees no more: the work under way ends within one step, and none begins. With [deleteData]
     * everything that ChainFed keeps is removed too, its signing key included; for the coordinator this is a new device
     * then. Without, the work goes on where it stopped when the user agrees again.
     *
     * May be called on any thread and does not block it. The future completes, on a background thread, when the work
     * has ended and the data are gone. When the process dies before, what the user said is kept as soon as it was
     * stored, which is the first thing done; a deletion is then finished at the next [configure]. Cancelling the future
     * changes nothing.
     *
     * When a step fails the others are done all the same, and the status is [State.Disabled]. The future then fails:
     * with an IOException when something cannot be stored or removed, and with what WorkManager or the key store threw.
     */
    @JvmOverloads
    public fun disable(deleteData: Boolean = false): CompletableFuture<Void?> =
        changed {
            isWithdrawn = true
            if (session.get() != null) tracker.show(State.Waiting(WaitReason.ENDING, "The work is being ended."))
            val mustDelete = deleteData || local.consent.mustDelete
            try {
                inAnyCase(
                    { local.withdraw(mustDelete) },
                    { session.get()?.cancel() },
                    { schedule.cancel() },
                    { session.get()?.join() },
                    { working.withLock { if (mustDelete) deleteAll() } },
                )
            } finally {
                tracker.show(State.Disabled)
            }
        }

    /** Does [action] after all that was asked for before. Nothing done to the future keeps it from being done. */
    private fun changed(action: suspend () -> Unit): CompletableFuture<Void?> {
        val future = CompletableFuture<Void?>()
        changes.launch {
            val result = runCatching { change.withLock { action() } }
            // Whoever hears of it may ask for the next change there and wait for it: not on the thread of the changes.
            launch(Dispatchers.IO) { result.fold({ future.complete(null) }, future::completeExceptionally) }
        }
        return future
    }

    private suspend fun scheduleWork() {
        schedule.enqueue()
        local.consent = local.consent.copy(scheduled = configuration.policy.fingerprint)
    }

    private suspend fun finishDeletion() {
        if (local.consent.mustDelete) working.withLock { deleteAll() }
    }

    /** That it has to be done is forgotten last: a deletion that was cut short, or failed, is seen and done again. */
    private suspend fun deleteAll() {
        try {
            inAnyCase({ local.deleteWork() }, { (keys as? KeystoreDeviceKeys)?.delete() })
            local.delete()
        } finally {
            tracker.forget()
        }
    }

    /** Does every one of [steps], also when one before it failed; then throws the first failure. */
    private suspend fun inAnyCase(vararg steps: suspend () -> Unit) {
        val failures = steps.mapNotNull { step -> runCatching { step() }.exceptionOrNull() }
        val first = failures.firstOrNull() ?: return
        failures.filter { it !== first }.forEach(first::addSuppressed)
        throw first
    }

    /** Picks up what an earlier process left: a deletion, or work whose policy the app's new version has changed. */
    private fun pickUp() {
        val consent = local.consent
        if (consent.mustDelete) changed { finishDeletion() }
        if (consent.isGiven && consent.scheduled != configuration.policy.fingerprint) {
            changed { if (mayWork) scheduleWork() }
        }
    }

    private val mayWork: Boolean
        get() = !isWithdrawn && local.consent.isGiven

    /** A stretch of work for WorkManager, in its coroutine. [foreground] shows the notification of long work. */
    internal suspend fun work(foreground: suspend (LongWorkNotification) -> Unit): Result =
        working.withLock {
            if (!mayWork) {
                schedule.cancel()
                return@withLock Result.success()
            }
            coroutineScope {
                val isLong = CompletableDeferred<Unit>()
                val notifying = launch { configuration.notification?.let { isLong.await().run { foreground(it) } } }
                val running = async { session { isLong.complete(Unit) }.run() }
                session.set(running)
                // Between the look at the consent and the line above the user may have changed their mind.
                if (!mayWork) running.cancel()
                try {
                    if (running.await() == SessionEnd.RETRY) Result.retry() else Result.success()
                } catch (_: CancellationException) {
                    currentCoroutineContext().ensureActive()
                    Result.success()
                } finally {
                    session.set(null)
                    notifying.cancel()
                }
            }
        }

    private fun session(onLongWork: () -> Unit) =
        DeviceSession(
            local.deviceFolder,
            configuration,
            tracker,
            configuration.deviceState ?: androidStateSource(),
            keys,
            // Where a test says what the device does, Android's word on its memory means nothing.
            if (configuration.deviceState == null) androidState::memoryBudget else { -> NO_LIMIT },
            onLongWork,
        )

    private fun androidStateSource(): DeviceStateSource = androidState

    public companion object {
        private const val NO_LIMIT = 0L
        private val newest = AtomicReference<ChainFed?>()

        internal val configured: ChainFed?
            get() = newest.get()

        /**
         * Says how ChainFed works in this app; to be called in `Application.onCreate`, because Android may start the
         * process for the work alone. Work that starts before this call does nothing and is tried again later.
         *
         * May be called on any thread; it reads two small files there, and nothing else happens before [enable]. When
         * the user had agreed in an earlier process, the work goes on as scheduled. A second call in a process takes
         * the place of the first for work that begins later. Nothing of the configuration survives a process death.
         *
         * @throws IllegalArgumentException when a value cannot be. @throws IllegalStateException when one is missing.
         */
        @JvmStatic
        public fun configure(
            context: Context,
            configuration: ChainFedBuilder.() -> Unit,
        ): ChainFed = builder(context).apply(configuration).configure()

        /**
         * The same for callers who do not write Kotlin: a builder that ends with [ChainFedBuilder.configure]. Any
         * thread.
         */
        @JvmStatic
        public fun builder(context: Context): ChainFedBuilder = ChainFedBuilder(context)

        internal fun install(
            context: Context,
            configuration: Configuration,
        ): ChainFed =
            ChainFed(context, configuration).also {
                newest.set(it)
                it.pickUp()
            }

        /** As in a process whose app has not configured ChainFed yet. */
        internal fun forgetConfiguration(): Unit = newest.set(null)

        private fun scheduled() =
            State.Waiting(WaitReason.SCHEDULED, "Android starts the work when the policy's constraints hold.")
    }
}
