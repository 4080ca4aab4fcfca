package ai.chainfed.android

import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.core.ChainFedException
import ai.chainfed.core.Device
import ai.chainfed.core.DeviceEvent
import ai.chainfed.core.DeviceKeys
import ai.chainfed.core.DeviceReport
import ai.chainfed.core.DeviceSettings
import ai.chainfed.core.DeviceStateSource
import ai.chainfed.core.Objection
import ai.chainfed.core.WorkPolicy
import android.os.Build
import android.os.Process
import android.os.SystemClock
import io.grpc.ManagedChannel
import kotlinx.coroutines.CancellationException
import java.io.File
import java.util.concurrent.TimeUnit

/** How a session ended, for the one who started it. */
internal enum class SessionEnd { LATER, RETRY }

/**
 * One stretch of work in one process: from a check-in until there is nothing to do, a rule does not hold or Android
 * stops it.
 *
 * [memoryBudget]: bytes, asked for when the work begins. [onLongWork]: called once, on the thread that works, when
 * there is an assignment.
 */
internal class DeviceSession(
    private val folder: File,
    private val configuration: Configuration,
    private val tracker: StatusTracker,
    private val deviceState: DeviceStateSource,
    private val keys: DeviceKeys,
    private val memoryBudget: () -> Long,
    private val onLongWork: () -> Unit,
) {
    private val account = WorkAccount(SystemClock::elapsedRealtimeNanos, Process::getElapsedCpuTime)
    private val before = tracker.figures
    private var objection: Objection? = null
    private var kind = RoundKind.TRAIN
    private var roundsDone = 0
    private var device: Device? = null

    /**
     * Works. Never throws but to be cancelled, and then what was done is kept: the next session goes on from there. The
     * status says what came of it.
     */
    suspend fun run(): SessionEnd {
        if (objectionNow() != null) return waitForPolicy()
        return try {
            ended(work())
        } catch (stopped: CancellationException) {
            tracker.show(State.Waiting(WaitReason.STOPPED, "Android stopped the work; it goes on from the last step."))
            throw stopped
        } catch (error: ChainFedException) {
            failed(error)
        } catch (
            @Suppress("TooGenericExceptionCaught") error: Exception,
        ) {
            // Of the app's own data access, as a rule: its message may hold a part of an example.
            failed(
                ChainFedException.BadInput(
                    "The work ended with ${error.javaClass.name}; look into the app's examples.",
                ),
            )
        } catch (error: LinkageError) {
            failed(
                ChainFedException.BadInput(
                    "ExecuTorch cannot be loaded on this device (${error.javaClass.simpleName}).",
                    error,
                ),
            )
        } finally {
            tracker.store(figures(tracker.figures.lastError))
        }
    }

    private suspend fun work(): DeviceReport {
        val channel = channel()
        try {
            val examples = configuration.examples.examples()
            val made = Device(settings(), channel, examples, WorkPolicy(::objectionNow), ::onEvent)
            device = made
            return made.run()
        } finally {
            channel.shutdownNow().awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS)
        }
    }

    private fun channel(): ManagedChannel =
        try {
            configuration.channels.connect()
        } catch (
            @Suppress("TooGenericExceptionCaught") error: Exception,
        ) {
            val kind = error.javaClass.simpleName
            throw ChainFedException.Unreachable(
                "There is no channel to ${configuration.address} ($kind); it is tried again.",
                error,
            )
        }

    private fun settings() =
        DeviceSettings(
            address = configuration.address,
            stateFolder = folder,
            modelName = "${Build.MANUFACTURER} ${Build.MODEL}",
            memoryBudgetBytes = configuration.policy.memoryBytes ?: memoryBudget(),
            threads = configuration.policy.threads,
            keys = keys,
            policyPatienceMillis = configuration.policy.patienceMillis,
            idlePatienceMillis = IDLE_PATIENCE_MILLIS,
            enrolmentToken = configuration.token,
        )

    /** Asked before the work and after every batch and step. */
    private fun objectionNow(): String? {
        val state = deviceState.read()
        account.note(state)
        objection = configuration.policy.rules.objection(state)
        return objection?.reason
    }

    private fun onEvent(event: DeviceEvent) {
        when (event.kind) {
            DeviceEvent.Kind.ASSIGNMENT -> {
                kind = RoundKind.valueOf(event.message.uppercase())
                onLongWork()
                tracker.show(State.Working(event.round ?: 0, kind, "beginning"))
            }

            DeviceEvent.Kind.PROGRESS -> {
                tracker.show(State.Working(event.round ?: 0, kind, event.message))
            }

            DeviceEvent.Kind.PAUSED -> {
                waitForPolicy()
            }

            DeviceEvent.Kind.WAITING -> {
                tracker.show(State.Waiting(WaitReason.COORDINATOR, event.message))
            }

            DeviceEvent.Kind.SUBMITTED -> {
                roundsDone += 1
                tracker.store(figures(tracker.figures.lastError))
            }

            else -> {} // What does not change the status.
        }
    }

    private fun ended(report: DeviceReport): SessionEnd {
        when (report.end) {
            DeviceReport.End.FINISHED -> tracker.show(State.Finished(report.reason))
            DeviceReport.End.POLICY -> waitForPolicy()
            else -> tracker.show(State.Waiting(WaitReason.COORDINATOR, report.reason))
        }
        return SessionEnd.LATER
    }

    private fun waitForPolicy(): SessionEnd {
        tracker.show(State.Waiting(WaitReason.POLICY, objection?.reason.orEmpty()))
        return SessionEnd.LATER
    }

    private fun failed(error: ChainFedException): SessionEnd {
        tracker.fail(error)
        return SessionEnd.RETRY
    }

    private fun figures(lastError: ChainFedException?): LocalState.Figures {
        val done = device?.soFar
        return LocalState.Figures(
            before.roundsDone + roundsDone,
            maxOf(before.peakMemoryBytes, done?.peakAnonymousBytes ?: 0),
            before.bytesDown + (done?.bytesDown ?: 0),
            before.bytesUp + (done?.bytesUp ?: 0),
            before.battery + account.cost,
            lastError,
        )
    }

    private companion object {
        const val CLOSE_SECONDS = 1L
        const val IDLE_PATIENCE_MILLIS = 60_000L
    }
}
