package ai.chainfed.android

import ai.chainfed.core.DeviceState
import ai.chainfed.core.DeviceStateSource
import ai.chainfed.core.Heat
import ai.chainfed.core.Network
import android.app.ActivityManager
import android.content.Context
import android.net.ConnectivityManager
import android.net.NetworkCapabilities
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import android.os.StatFs
import android.os.SystemClock
import androidx.annotation.RequiresApi

/**
 * What Android says of the device. Asking takes a few calls of other processes, so that an answer serves for
 * [FRESH_MILLIS], less than a step on a phone takes.
 */
internal class AndroidDeviceState(
    private val context: Context,
) : DeviceStateSource {
    private val battery = service(BatteryManager::class.java)
    private val power = service(PowerManager::class.java)
    private val connectivity = service(ConnectivityManager::class.java)
    private val activities = service(ActivityManager::class.java)
    private var newest: DeviceState? = null
    private var readAt = 0L

    @Synchronized override fun read(): DeviceState {
        val now = SystemClock.elapsedRealtime()
        newest?.takeIf { now - readAt < FRESH_MILLIS }?.let { return it }
        return ask().also {
            newest = it
            readAt = now
        }
    }

    /** Anonymous memory that the work may take by default: half of what is free above the system's threshold, bytes. */
    fun memoryBudget(): Long = memory().let { maxOf(1, (it.availMem - it.threshold) / 2) }

    private fun ask(): DeviceState {
        val (network, isRoaming) = network()
        return DeviceState(
            batteryPercent = batteryPercent(),
            isCharging = battery.isCharging,
            isPowerSaving = power.isPowerSaveMode,
            heat = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) heat() else Heat.NONE,
            network = network,
            isRoaming = isRoaming,
            freeStorageBytes = StatFs(context.noBackupFilesDir.path).availableBytes,
            isMemoryLow = memory().lowMemory,
            isInteractive = power.isInteractive,
        )
    }

    /** A device that does not tell, or has no battery, counts as full. */
    private fun batteryPercent(): Int =
        battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY).takeIf { it >= 0 } ?: FULL_PERCENT

    /** The kind of network, and whether it is a foreign one. */
    private fun network(): Pair<Network, Boolean> =
        try {
            val capabilities = connectivity.activeNetwork?.let { connectivity.getNetworkCapabilities(it) }
            kindOf(capabilities) to (capabilities != null && isRoaming(capabilities))
        } catch (_: SecurityException) {
            // Some devices with Android 11 refuse to tell; then it may be one that costs.
            Network.METERED to false
        }

    private fun <T : Any> service(kind: Class<T>): T =
        checkNotNull(context.getSystemService(kind)) { "This Android has no ${kind.simpleName}." }

    private fun memory() = ActivityManager.MemoryInfo().also(activities::getMemoryInfo)

    @RequiresApi(Build.VERSION_CODES.Q)
    private fun heat(): Heat =
        when (power.currentThermalStatus) {
            PowerManager.THERMAL_STATUS_NONE -> Heat.NONE
            PowerManager.THERMAL_STATUS_LIGHT -> Heat.LIGHT
            PowerManager.THERMAL_STATUS_MODERATE -> Heat.MODERATE
            PowerManager.THERMAL_STATUS_SEVERE -> Heat.SEVERE
            PowerManager.THERMAL_STATUS_CRITICAL -> Heat.CRITICAL
            PowerManager.THERMAL_STATUS_EMERGENCY -> Heat.EMERGENCY
            else -> Heat.SHUTDOWN
        }

    private fun kindOf(network: NetworkCapabilities?): Network =
        when {
            network == null || !network.hasCapability(NetworkCapabilities.NET_CAPABILITY_INTERNET) -> Network.NONE
            network.hasCapability(NetworkCapabilities.NET_CAPABILITY_NOT_METERED) -> Network.UNMETERED
            else -> Network.METERED
        }

    @Suppress("DEPRECATION") // What took its place came with Android 9.
    private fun isRoaming(network: NetworkCapabilities): Boolean =
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.P) {
            !network.hasCapability(NetworkCapabilities.NET_CAPABILITY_NOT_ROAMING)
        } else {
            connectivity.activeNetworkInfo?.isRoaming == true
        }

    private companion object {
        const val FRESH_MILLIS = 100
        const val FULL_PERCENT = 100
    }
}
