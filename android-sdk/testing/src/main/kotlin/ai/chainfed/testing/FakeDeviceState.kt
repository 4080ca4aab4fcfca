package ai.chainfed.testing

import ai.chainfed.core.DeviceState
import ai.chainfed.core.DeviceStateSource
import ai.chainfed.core.Heat
import ai.chainfed.core.Network

/**
 * A device's state as a test wants it; at first everything allows work: charging, full, cool, not in use, on a network
 * that costs nothing. Thread-safe.
 *
 * @property onRead called with the number of the reading, from 1, before each one: where a test changes the state in
 * the midst of the work.
 */
public class FakeDeviceState
    @JvmOverloads
    constructor(
        private val onRead: FakeDeviceState.(Int) -> Unit = {},
    ) : DeviceStateSource {
        private var readings = 0

        /** What the next reading gives. */
        @Volatile public var state: DeviceState =
            DeviceState(
                batteryPercent = 100,
                isCharging = true,
                isPowerSaving = false,
                heat = Heat.NONE,
                network = Network.UNMETERED,
                isRoaming = false,
                freeStorageBytes = 10_000_000_000,
                isMemoryLow = false,
                isInteractive = false,
            )

        /** How often the state was read. */
        public val numReadings: Int
            @Synchronized get() = readings

        @Synchronized override fun read(): DeviceState {
            readings += 1
            onRead(readings)
            return state
        }
    }
