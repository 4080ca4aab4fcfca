package ai.chainfed.android

import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.core.ChainFedException
import android.util.Log
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import java.io.IOException

/** The status that the app sees, and the figures of it that [local] keeps. Thread-safe. */
internal class StatusTracker(
    private val local: LocalState,
    first: State,
) {
    private val flow = MutableStateFlow(statusOf(first, local.figures))

    val status: StateFlow<ChainFedStatus> = flow.asStateFlow()

    /** Says what ChainFed is doing now. */
    fun show(state: State): Unit = flow.update { it.copy(state = state) }

    /** The figures as they stand. */
    val figures: LocalState.Figures
        get() =
            flow.value.let {
                LocalState.Figures(
                    it.roundsDone,
                    it.peakMemoryBytes,
                    it.bytesDown,
                    it.bytesUp,
                    it.battery,
                    it.lastError,
                )
            }

    /** Shows new figures, and stores them where there is room; what was not stored comes with the next ones. */
    @Synchronized fun store(figures: LocalState.Figures) {
        flow.update { statusOf(it.state, figures) }
        whereThereIsRoom { local.figures = figures }
    }

    /** Shows and stores a failure, and what helps: [remedy], or else what helps in failures of its kind. */
    fun fail(
        error: ChainFedException,
        remedy: Remedy?,
    ) {
        show(State.Failed(error, remedy ?: remedyFor(error)))
        store(figures.copy(lastError = error))
    }

    /** Keeps the public key, in hexadecimal, that a coordinator took this device with. */
    fun enrolled(publicKey: String) {
        if (local.enrolledKey != publicKey) whereThereIsRoom { local.enrolledKey = publicKey }
    }

    /** Whether a coordinator took this device with another public key than [publicKey], in hexadecimal. */
    fun enrolledOtherwise(publicKey: String): Boolean = local.enrolledKey !in setOf("", publicKey)

    /** Everything as on a new device. */
    fun forget() {
        flow.value = statusOf(State.Disabled, LocalState.Figures())
    }

    private fun statusOf(
        state: State,
        figures: LocalState.Figures,
    ) = ChainFedStatus(
        state,
        figures.roundsDone,
        figures.peakMemoryBytes,
        figures.bytesDown,
        figures.bytesUp,
        figures.battery,
        figures.lastError,
    )

    private fun remedyFor(error: ChainFedException): Remedy =
        when (error) {
            is ChainFedException.Unreachable, is ChainFedException.InUse -> Remedy.WAIT
            is ChainFedException.StorageFull -> Remedy.FREE_STORAGE
            is ChainFedException.BadInput, is ChainFedException.Unauthorized -> Remedy.CHECK_APP
            else -> Remedy.CHECK_COORDINATOR
        }

    private fun whereThereIsRoom(store: () -> Unit) =
        try {
            store()
        } catch (error: IOException) {
            Log.w(TAG, "What ChainFed has done cannot be stored now (${error.javaClass.simpleName}).")
            Unit
        }

    private companion object {
        const val TAG = "ChainFed"
    }
}
