package ai.chainfed.core

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.KeyPair
import java.security.KeyPairGenerator
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import java.security.spec.PKCS8EncodedKeySpec
import java.security.spec.X509EncodedKeySpec

/**
 * A device's key in a file of its state folder that its owner alone can read, made at the first use: for a JVM and for
 * tests. A phone keeps its own in its key store.
 *
 * @throws ChainFedException.BadInput from both members when the file cannot be used.
 */
public class SoftwareDeviceKeys(
    private val file: File,
) : DeviceKeys {
    private val pair by lazy {
        try {
            if (file.isFile) read() else make()
        } catch (error: IOException) {
            throw unusable(error)
        } catch (error: GeneralSecurityException) {
            throw unusable(error)
        }
    }

    override val publicKey: ByteArray
        get() = pair.public.encoded

    override fun sign(message: ByteArray): ByteArray =
        Signature.getInstance("SHA256withECDSA").run {
            initSign(pair.private)
            update(message)
            sign()
        }

    private fun make(): KeyPair {
        val generator = KeyPairGenerator.getInstance("EC").apply { initialize(ECGenParameterSpec("secp256r1")) }
        val pair = generator.generateKeyPair()
        val part = File(file.path + ".part")
        part.delete()
        part.createNewFile()
        // Nobody's but the owner's, before anything is in it.
        part.setReadable(false, false)
        part.setReadable(true, true)
        FileOutputStream(part).use {
            it.write("${pair.public.encoded.toHex()}\n${pair.private.encoded.toHex()}\n".toByteArray())
            it.fd.sync()
        }
        moveOver(part, file)
        return pair
    }

    private fun read(): KeyPair {
        val lines = file.readLines().map(::fromHex)
        if (lines.size != 2) throw IOException("it has not two lines")
        val (public, private) = lines
        val factory = KeyFactory.getInstance("EC")
        return KeyPair(
            factory.generatePublic(X509EncodedKeySpec(public)),
            factory.generatePrivate(PKCS8EncodedKeySpec(private)),
        )
    }

    private fun fromHex(line: String): ByteArray {
        val bytes =
            line.chunked(2).map { it.toIntOrNull(HEXADECIMAL) ?: throw IOException("a line is not hexadecimal") }
        return ByteArray(bytes.size) { bytes[it].toByte() }
    }

    private fun unusable(error: Exception) =
        ChainFedException.BadInput(
            "The device's signing key in ${file.name} cannot be used; delete the device's data.",
            error,
        )

    private companion object {
        const val HEXADECIMAL = 16
    }
}
