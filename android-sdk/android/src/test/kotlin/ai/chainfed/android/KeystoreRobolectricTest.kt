package ai.chainfed.android

import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.core.ChainFedException
import ai.chainfed.core.DeviceKeys
import ai.chainfed.core.ExampleSource
import ai.chainfed.testing.FakeDeviceState
import ai.chainfed.testing.Heard
import ai.chainfed.testing.InMemoryCoordinator
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner

/**
 * The signing key behind its interface. Robolectric has no AndroidKeyStore: that it works is shown on a phone alone.
 */
@RunWith(RobolectricTestRunner::class)
class KeystoreRobolectricTest {
    private val coordinator = InMemoryCoordinator(bundle("encoder")).train(0, 1)

    @Before fun initialize(): Unit = initializeWorkManager()

    @After fun close(): Unit = coordinator.close()

    @Test fun `a key store that cannot be used is a typed failure, not a crash`() {
        val chainFed =
            ChainFed.configure(application) {
                channel(coordinator::connect)
                examples { ExampleSource.text(texts) }
                deviceState(FakeDeviceState())
            }
        chainFed.enable().done()

        chainFed.workNow()

        val failed = chainFed.status.value.state as State.Failed
        assertTrue("${failed.error}", failed.error is ChainFedException.Other)
        assertTrue(failed.error.message!!.startsWith("The device's key store cannot be used"))
        assertEquals(emptyList<Heard>(), coordinator.heard)
    }

    @Test fun `a wrong signature is refused and the work stays open`() {
        val honest = softwareKeys()
        val wrong =
            object : DeviceKeys by honest {
                override fun sign(message: ByteArray): ByteArray = honest.sign(message + 1)
            }
        val chainFed = configure(coordinator, keys = wrong)
        chainFed.enable().done()

        chainFed.workNow()

        assertEquals(emptyList<Heard>(), coordinator.heard.filterIsInstance<Heard.Update>())
        assertTrue(chainFed.status.value.lastError is ChainFedException.Unauthorized)
    }
}
