package ai.chainfed.apk

import com.android.apksig.ApkSigner
import com.android.apksig.ApkVerifier
import com.android.apksig.KeyConfig
import java.io.File
import java.security.KeyStore
import java.security.PrivateKey
import java.security.cert.X509Certificate

private const val ALIAS = "androiddebugkey"
private const val PASSWORD = "android"
private const val LIBRARY_ALIGNMENT_BYTES = 16_384

/** A key for apps that never leave the developer's devices; made by the JDK's keytool where [file] is absent. */
class DebugKey(
    private val file: File,
) {
    internal fun load(): ApkSigner.SignerConfig {
        if (!file.isFile) create()
        val store = KeyStore.getInstance("PKCS12")
        file.inputStream().use { store.load(it, PASSWORD.toCharArray()) }
        val key = store.getKey(ALIAS, PASSWORD.toCharArray()) as PrivateKey
        val certificate = store.getCertificate(ALIAS) as X509Certificate
        return ApkSigner.SignerConfig.Builder("debug", KeyConfig.Jca(key), listOf(certificate)).build()
    }

    private fun create() {
        file.parentFile.mkdirs()
        val keytool = File(System.getProperty("java.home"), "bin/keytool")
        val options =
            mapOf(
                "-keystore" to file.path,
                "-storetype" to "PKCS12",
                "-storepass" to PASSWORD,
                "-alias" to ALIAS,
                "-keyalg" to "RSA",
                "-keysize" to "2048",
                "-validity" to "10950",
                "-dname" to "CN=Android Debug, O=Android, C=US",
            )
        val command = listOf(keytool.path, "-genkeypair") + options.flatMap { listOf(it.key, it.value) }
        val process = ProcessBuilder(command).redirectErrorStream(true).start()
        val said = process.inputStream.bufferedReader().readText()
        if (process.waitFor() != 0) throw BuildFailure("keytool could not make $file: ${said.trim()}")
    }
}

/**
 * Aligns [unsigned] (native libraries to 16 KB, as devices with such pages need, the rest that is stored to 4 bytes)
 * and signs it (schemes 2 and 3; Android from 8.0 on needs no older one).
 */
fun alignAndSign(
    unsigned: File,
    key: DebugKey,
    minSdk: Int,
    into: File,
) {
    ApkSigner
        .Builder(listOf(key.load()))
        .setInputApk(unsigned)
        .setOutputApk(into)
        .setMinSdkVersion(minSdk)
        .setV1SigningEnabled(false)
        .setV2SigningEnabled(true)
        .setV3SigningEnabled(true)
        .setV4SigningEnabled(false)
        .setAlignmentPreserved(false)
        .setLibraryPageAlignmentBytes(LIBRARY_ALIGNMENT_BYTES)
        .build()
        .sign()
    val verified =
        ApkVerifier
            .Builder(into)
            .setMinCheckedPlatformVersion(minSdk)
            .build()
            .verify()
    if (!verified.isVerified) {
        throw BuildFailure("The signatures of $into do not hold: ${verified.errors.joinToString()}.")
    }
}
