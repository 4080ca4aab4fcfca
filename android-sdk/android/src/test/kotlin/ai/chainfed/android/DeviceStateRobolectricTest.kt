package ai.chainfed.android

import ai.chainfed.core.Heat
import ai.chainfed.core.Network
import android.app.ActivityManager
import android.net.ConnectivityManager
import android.net.NetworkCapabilities
import android.os.BatteryManager
import android.os.PowerManager
import android.os.StatFs
import android.os.SystemClock
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.Implementation
import org.robolectric.annotation.Implements
import org.robolectric.shadows.ShadowConnectivityManager
import org.robolectric.shadows.ShadowNetworkCapabilities
import org.robolectric.shadows.ShadowStatFs
import java.time.Duration

/** What the policy learns from Android. */
@RunWith(RobolectricTestRunner::class)
class DeviceStateRobolectricTest {
    private val battery = application.getSystemService(BatteryManager::class.java)!!
    private val power = application.getSystemService(PowerManager::class.java)!!
    private val connectivity = application.getSystemService(ConnectivityManager::class.java)!!
    private val activities = application.getSystemService(ActivityManager::class.java)!!

    private fun read() = AndroidDeviceState(application).read()

    private fun network(vararg capabilities: Int) {
        val made = ShadowNetworkCapabilities.newInstance()
        capabilities.forEach { shadowOf(made).addCapability(it) }
        shadowOf(connectivity).setNetworkCapabilities(connectivity.activeNetwork, made)
    }

    @Test fun `battery, heat and use`() {
        shadowOf(battery).setIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY, 42)
        shadowOf(battery).setIsCharging(true)
        shadowOf(power).setCurrentThermalStatus(PowerManager.THERMAL_STATUS_SEVERE)
        shadowOf(power).turnScreenOn(false)

        val state = read()

        assertEquals(42, state.batteryPercent)
        assertTrue(state.isCharging)
        assertEquals(Heat.SEVERE, state.heat)
        assertFalse(state.isInteractive)
    }

    @Test fun `what a network costs`() {
        network(NetworkCapabilities.NET_CAPABILITY_INTERNET, NetworkCapabilities.NET_CAPABILITY_NOT_METERED)
        assertEquals(Network.UNMETERED, read().network)
        assertTrue(read().isRoaming)

        network(NetworkCapabilities.NET_CAPABILITY_INTERNET, NetworkCapabilities.NET_CAPABILITY_NOT_ROAMING)
        assertEquals(Network.METERED, read().network)
        assertFalse(read().isRoaming)

        network()
        assertEquals(Network.NONE, read().network)
    }

    @Test
    @Config(shadows = [SilentConnectivity::class])
    fun `a network of which Android tells nothing may cost`() {
        val state = read()

        assertEquals(Network.METERED, state.network)
        assertFalse(state.isRoaming)
    }

    @Test fun `a battery of which Android tells nothing counts as full`() {
        shadowOf(battery).setIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY, Int.MIN_VALUE)

        assertEquals(100, read().batteryPercent)
    }

    @Test fun `storage and memory`() {
        ShadowStatFs.registerStats(application.noBackupFilesDir, 100, 30, 20)
        val memory = ActivityManager.MemoryInfo()
        memory.availMem = 3_000_000_000
        memory.threshold = 1_000_000_000
        memory.lowMemory = true
        shadowOf(activities).setMemoryInfo(memory)

        assertEquals(20L * ShadowStatFs.BLOCK_SIZE, StatFs(application.noBackupFilesDir.path).availableBytes)
        assertEquals(20L * ShadowStatFs.BLOCK_SIZE, read().freeStorageBytes)
        assertTrue(read().isMemoryLow)
        assertEquals(1_000_000_000L, AndroidDeviceState(application).memoryBudget())
    }

    @Test fun `an answer serves for a tenth of a second`() {
        val source = AndroidDeviceState(application)
        shadowOf(battery).setIsCharging(true)
        assertTrue(source.read().isCharging)
        shadowOf(battery).setIsCharging(false)

        assertTrue(source.read().isCharging)
        SystemClock.setCurrentTimeMillis(SystemClock.uptimeMillis() + 200)
        org.robolectric.shadows.ShadowSystemClock.advanceBy(Duration.ofMillis(101))
        assertFalse(source.read().isCharging)
    }
}

/** As on some devices with Android 11. */
@Implements(ConnectivityManager::class)
class SilentConnectivity : ShadowConnectivityManager() {
    @Implementation
    override fun getNetworkCapabilities(network: android.net.Network?): NetworkCapabilities =
        throw SecurityException("Package android does not belong to 10123")
}
