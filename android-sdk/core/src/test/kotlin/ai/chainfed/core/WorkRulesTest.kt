package ai.chainfed.core

import org.junit.Assert.assertEquals
import org.junit.Test

/** Every rule, held against a state that breaks it and one that does not. */
class WorkRulesTest {
    private val fine =
        DeviceState(
            batteryPercent = 50,
            isCharging = false,
            isPowerSaving = false,
            heat = Heat.NONE,
            network = Network.METERED,
            isRoaming = false,
            freeStorageBytes = 1_000_000,
            isMemoryLow = false,
            isInteractive = true,
        )

    @Test fun `without rules a usual device may work`() {
        assertEquals(null, WorkRules().objection(fine))
    }

    @Test fun `each rule objects to what breaks it`() {
        val cases =
            listOf(
                Triple(WorkRule.CHARGING, WorkRules(charging = true), fine),
                Triple(WorkRule.IDLE, WorkRules(idle = true), fine),
                Triple(WorkRule.NETWORK, WorkRules(), fine.copy(network = Network.NONE)),
                Triple(WorkRule.UNMETERED, WorkRules(unmetered = true), fine),
                Triple(WorkRule.ROAMING, WorkRules(), fine.copy(isRoaming = true)),
                Triple(WorkRule.BATTERY, WorkRules(minBatteryPercent = 51), fine),
                Triple(WorkRule.POWER_SAVING, WorkRules(), fine.copy(isPowerSaving = true)),
                Triple(WorkRule.STORAGE, WorkRules(minFreeStorageBytes = 1_000_001), fine),
                Triple(WorkRule.HEAT, WorkRules(), fine.copy(heat = Heat.MODERATE)),
                Triple(WorkRule.MEMORY, WorkRules(), fine.copy(isMemoryLow = true)),
            )
        assertEquals(WorkRule.values().toSet(), cases.map { it.first }.toSet())
        for ((rule, rules, state) in cases) assertEquals(rule, rules.objection(state)?.rule)
    }

    @Test fun `what a rule asks for is enough`() {
        val strict =
            WorkRules(
                charging = true,
                idle = true,
                unmetered = true,
                minBatteryPercent = 50,
                minFreeStorageBytes = 1_000_000,
                hottest = Heat.SEVERE,
            )
        val state =
            fine.copy(isCharging = true, isPowerSaving = true, heat = Heat.SEVERE, network = Network.UNMETERED, isInteractive = false)

        assertEquals(null, strict.objection(state))
        assertEquals(null, WorkRules(roaming = true).objection(fine.copy(isRoaming = true)))
    }
}
