package ai.chainfed.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Test

class WorkRulesTest {
    private val good =
        DeviceState(
            batteryPercent = 50,
            isCharging = true,
            isPowerSaving = false,
            heat = Heat.NONE,
            network = Network.UNMETERED,
            isRoaming = false,
            freeStorageBytes = 1_000_000_000,
            isMemoryLow = false,
            isInteractive = false,
        )

    private val strict =
        WorkRules(
            charging = true,
            idle = true,
            unmetered = true,
            minBatteryPercent = 40,
            minFreeStorageBytes = 500_000_000,
        )

    @Test
    fun `each rule objects to what breaks it alone`() {
        assertNull(strict.objection(good))
        val broken =
            mapOf(
                WorkRule.CHARGING to good.copy(isCharging = false),
                WorkRule.IDLE to good.copy(isInteractive = true),
                WorkRule.NETWORK to good.copy(network = Network.NONE),
                WorkRule.UNMETERED to good.copy(network = Network.METERED),
                WorkRule.ROAMING to good.copy(isRoaming = true),
                WorkRule.BATTERY to good.copy(batteryPercent = 39),
                WorkRule.STORAGE to good.copy(freeStorageBytes = 499_999_999),
                WorkRule.HEAT to good.copy(heat = Heat.MODERATE),
                WorkRule.MEMORY to good.copy(isMemoryLow = true),
            )
        for ((rule, state) in broken) assertEquals(rule, strict.objection(state)?.rule)
        assertEquals(WorkRule.entries.toSet() - WorkRule.POWER_SAVING, broken.keys)
        assertEquals("the battery is below 40%", strict.objection(good.copy(batteryPercent = 39))?.reason)
        assertEquals(
            "less than 500 MB of storage is free",
            strict.objection(good.copy(freeStorageBytes = 0))?.reason,
        )
    }

    @Test
    fun `limits are still allowed`() {
        val edge = good.copy(batteryPercent = 40, freeStorageBytes = 500_000_000, heat = Heat.LIGHT)
        assertNull(strict.objection(edge))
    }

    @Test
    fun `without rules only what harms is objected to`() {
        val busy = good.copy(isCharging = false, isInteractive = true, network = Network.METERED, batteryPercent = 0)
        assertNull(WorkRules().objection(busy.copy(freeStorageBytes = 0)))
        assertEquals(WorkRule.POWER_SAVING, WorkRules().objection(busy.copy(isPowerSaving = true))?.rule)
        assertNull(WorkRules().objection(busy.copy(isPowerSaving = true, isCharging = true)))
        assertNull(WorkRules(roaming = true).objection(busy.copy(isRoaming = true)))
        assertNull(WorkRules(hottest = Heat.SEVERE).objection(busy.copy(heat = Heat.SEVERE)))
    }
}
