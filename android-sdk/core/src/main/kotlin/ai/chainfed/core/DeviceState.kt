package ai.chainfed.core

/** How warm a device is, as Android's thermal status names it, the coolest first. */
public enum class Heat { NONE, LIGHT, MODERATE, SEVERE, CRITICAL, EMERGENCY, SHUTDOWN }

/** What network a device has. */
public enum class Network { NONE, METERED, UNMETERED }

/**
 * What a device is doing at a moment.
 *
 * @property batteryPercent 0 to 100.
 * @property isCharging whether a charger feeds it.
 * @property isPowerSaving whether its user has switched power saving on.
 * @property isRoaming whether the network is a foreign one.
 * @property freeStorageBytes room where ChainFed keeps its state.
 * @property isMemoryLow whether the system is about to end processes.
 * @property isInteractive whether somebody uses it.
 */
public data class DeviceState(
    public val batteryPercent: Int,
    public val isCharging: Boolean,
    public val isPowerSaving: Boolean,
    public val heat: Heat,
    public val network: Network,
    public val isRoaming: Boolean,
    public val freeStorageBytes: Long,
    public val isMemoryLow: Boolean,
    public val isInteractive: Boolean,
)

/** Tells what the device is doing now. Called on the thread that works, after every batch and step. */
public fun interface DeviceStateSource {
    /** The state now, or a moment ago. */
    public fun read(): DeviceState
}
