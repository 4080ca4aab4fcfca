package ai.chainfed.android

import ai.chainfed.core.ChainFedException
import ai.chainfed.core.DeviceKeys
import android.content.Context
import android.content.pm.PackageManager
import android.os.Build
import android.security.keystore.KeyGenParameterSpec
import android.security.keystore.KeyProperties
import androidx.annotation.RequiresApi
import java.io.IOException
import java.security.GeneralSecurityException
import java.security.KeyPairGenerator
import java.security.KeyStore
import java.security.PrivateKey
import java.security.ProviderException
import java.security.Signature
import java.security.spec.ECGenParameterSpec

/**
 * The device's key in the Android key store, made at the first use: it never leaves the device's secure hardware, a
 * StrongBox where there is one. It stays until [delete] or until the app is removed.
 *
 * @throws ChainFedException.Other from every member when the key store cannot be used.
 */
internal class KeystoreDeviceKeys(
    private val context: Context,
) : DeviceKeys {
    override val publicKey: ByteArray
        get() = guarded { entry().certificate.publicKey.encoded }

    override fun sign(message: ByteArray): ByteArray =
        guarded {
            Signature.getInstance("SHA256withECDSA").run {
                initSign(entry().privateKey)
                update(message)
                sign()
            }
        }

    /** Removes the key for good. */
    fun delete(): Unit = guarded { store().deleteEntry(ALIAS) }

    private fun entry(): KeyStore.PrivateKeyEntry {
        find()?.let { return it }
        make()
        return find() ?: throw KeyStoreGoneException()
    }

    private fun find(): KeyStore.PrivateKeyEntry? {
        val store = store()
        val key = store.getKey(ALIAS, null) as? PrivateKey ?: return null
        return KeyStore.PrivateKeyEntry(key, arrayOf(store.getCertificate(ALIAS)))
    }

    private fun make() {
        val hasStrongBox =
            Build.VERSION.SDK_INT >= Build.VERSION_CODES.P &&
                context.packageManager.hasSystemFeature(PackageManager.FEATURE_STRONGBOX_KEYSTORE)
        if (hasStrongBox && makeInStrongBox()) return
        generate(specification().build())
    }

    /** False when the StrongBox takes no key of this kind, or no more keys, or fails, as that of some devices does. */
    @RequiresApi(Build.VERSION_CODES.P)
    private fun makeInStrongBox(): Boolean =
        try {
            generate(specification().setIsStrongBoxBacked(true).build())
            true
        } catch (_: ProviderException) {
            false
        }

    private fun specification() =
        KeyGenParameterSpec
            .Builder(ALIAS, KeyProperties.PURPOSE_SIGN)
            .setAlgorithmParameterSpec(ECGenParameterSpec("secp256r1"))
            .setDigests(KeyProperties.DIGEST_SHA256)

    private fun generate(specification: KeyGenParameterSpec) {
        KeyPairGenerator.getInstance(KeyProperties.KEY_ALGORITHM_EC, STORE).run {
            initialize(specification)
            generateKeyPair()
        }
    }

    private fun store(): KeyStore = KeyStore.getInstance(STORE).apply { load(null) }

    private fun <T> guarded(action: () -> T): T =
        try {
            action()
        } catch (error: GeneralSecurityException) {
            throw unusable(error)
        } catch (error: ProviderException) {
            throw unusable(error)
        } catch (error: IOException) {
            throw unusable(error)
        }

    private fun unusable(error: Exception) =
        ChainFedException.Other(
            "The device's key store cannot be used (${error.javaClass.simpleName}); it is tried again.",
            error,
        )

    private class KeyStoreGoneException : GeneralSecurityException("the key that was just made is gone")

    private companion object {
        const val STORE = "AndroidKeyStore"
        const val ALIAS = "ai.chainfed.device"
    }
}
