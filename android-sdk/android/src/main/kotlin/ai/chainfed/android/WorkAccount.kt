package ai.chainfed.android

import ai.chainfed.core.DeviceState

/**
 * What a piece of work costs. For one thread.
 *
 * [nanoTime] and [processorMillis]: clocks, the second of the process's processor time.
 */
internal class WorkAccount(
    private val nanoTime: () -> Long,
    private val processorMillis: () -> Long,
) {
    private val beganAt = nanoTime()
    private val processorBefore = processorMillis()
    private var before: DeviceState? = null
    private var percent = 0

    /** Takes note of the device's state at a moment. */
    fun note(state: DeviceState) {
        val last = before
        // What a charger gives in between hides what the work takes; only stretches without one are counted.
        if (last != null && !last.isCharging &&
            !state.isCharging
        ) {
            percent += maxOf(0, last.batteryPercent - state.batteryPercent)
        }
        before = state
    }

    /** The cost so far. */
    val cost: BatteryCost
        get() =
            BatteryCost(
                percent,
                (processorMillis() - processorBefore) / MILLIS_PER_SECOND,
                (nanoTime() - beganAt) / NANOS_PER_SECOND,
            )

    private companion object {
        const val MILLIS_PER_SECOND = 1e3
        const val NANOS_PER_SECOND = 1e9
    }
}
