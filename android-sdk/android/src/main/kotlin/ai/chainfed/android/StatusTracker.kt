package ai.chainfed.android

import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.core.ChainFedException
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update

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

    /** Shows and stores new figures. */
    @Synchronized fun store(figures: LocalState.Figures) {
        flow.update { statusOf(it.state, figures) }
        local.figures = figures
    }

    /** Shows and stores a failure. */
    fun fail(error: ChainFedException) {
        show(State.Failed(error, remedyFor(error)))
        store(figures.copy(lastError = error))
    }

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
            is ChainFedException.BadInput -> Remedy.CHECK_APP
            is ChainFedException.Unauthorized -> Remedy.DELETE_DATA
            else -> Remedy.CHECK_COORDINATOR
        }
}
