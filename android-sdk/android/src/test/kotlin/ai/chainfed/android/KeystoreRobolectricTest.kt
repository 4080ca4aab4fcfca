package ai.chainfed.android

import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.core.ChainFedException
import ai.chainfed.core.DeviceKeys
import ai.chainfed.core.ExampleSource
import ai.chainfed.testing.FakeDeviceState
import ai.chainfed.testing.Heard
import ai.chainfed.testing.InMemoryCoordinator
import android.content.pm.PackageManager
import android.security.keystore.KeyGenParameterSpec
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import java.security.KeyPair
import java.security.KeyPairGeneratorSpi
import java.security.Provider
import java.security.ProviderException
import java.security.SecureRandom
import java.security.Security
import java.security.spec.AlgorithmParameterSpec

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

    @Test fun `a StrongBox that fails is done without`() {
        shadowOf(application.packageManager).setSystemFeature(PackageManager.FEATURE_STRONGBOX_KEYSTORE, true)
        val store = KeyStoreWithoutStrongBox()
        Security.addProvider(store)
        try {
            assertThrows(ChainFedException.Other::class.java) { KeystoreDeviceKeys(application).publicKey }
        } finally {
            Security.removeProvider(store.name)
        }
        assertEquals(listOf(true, false), KeyStoreWithoutStrongBox.asked)
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

/** Android's key store on a device whose StrongBox always fails; it keeps none of the keys that it makes. */
private class KeyStoreWithoutStrongBox : Provider("AndroidKeyStore", "1", "a key store for tests") {
    init {
        putService(Service(this, "KeyStore", name, "sun.security.pkcs12.PKCS12KeyStore", null, null))
        put("KeyPairGenerator.EC", Generator::class.java.name)
    }

    class Generator : KeyPairGeneratorSpi() {
        override fun initialize(
            parameters: AlgorithmParameterSpec,
            random: SecureRandom?,
        ) {
            val isStrongBox = (parameters as KeyGenParameterSpec).isStrongBoxBacked
            asked += isStrongBox
            if (isStrongBox) throw ProviderException("Keystore key generation failed")
        }

        override fun initialize(
            size: Int,
            random: SecureRandom?,
        ): Unit = throw UnsupportedOperationException("It takes a specification.")

        override fun generateKeyPair(): KeyPair = KeyPair(null, null)
    }

    companion object {
        /** Whether each key was to be in the StrongBox. */
        val asked = ArrayList<Boolean>()
    }
}
