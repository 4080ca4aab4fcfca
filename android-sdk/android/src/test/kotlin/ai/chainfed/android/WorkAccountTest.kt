package ai.chainfed.android

import ai.chainfed.testing.FakeDeviceState
import org.junit.Assert.assertEquals
import org.junit.Test

/** The price of a piece of work. */
class WorkAccountTest {
    @Test fun `clocks are read from the beginning of the work`() {
        var nanos = 5_000_000_000L
        var millis = 700L
        val account = WorkAccount({ nanos }, { millis })
        nanos += 2_500_000_000
        millis += 1_250

        assertEquals(BatteryCost(0, 1.25, 2.5), account.cost)
    }

    @Test fun `what the battery loses counts only where no charger is in between`() {
        val account = WorkAccount({ 0 }, { 0 })
        val state = FakeDeviceState().state
        for ((percent, charging) in listOf(
            80 to false,
            78 to false,
            79 to false,
            77 to true,
            70 to true,
            60 to false,
            59 to false,
        )) {
            account.note(state.copy(batteryPercent = percent, isCharging = charging))
        }

        assertEquals(2 + 1, account.cost.percent)
    }

    @Test fun `costs add up`() {
        assertEquals(BatteryCost(3, 1.5, 4.0), BatteryCost(1, 0.5, 3.0) + BatteryCost(2, 1.0, 1.0))
    }
}
