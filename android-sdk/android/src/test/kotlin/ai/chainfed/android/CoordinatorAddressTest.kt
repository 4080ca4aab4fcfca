package ai.chainfed.android

import ai.chainfed.testing.InMemoryCoordinator
import ai.chainfed.v1.DeviceServiceGrpcKt.DeviceServiceCoroutineStub
import ai.chainfed.v1.enrolRequest
import io.grpc.ManagedChannel
import io.grpc.Server
import io.grpc.ServerServiceDefinition
import io.grpc.StatusException
import io.grpc.TlsServerCredentials
import io.grpc.okhttp.OkHttpServerBuilder
import kotlinx.coroutines.runBlocking
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File
import java.security.KeyStore
import java.util.Base64
import java.util.concurrent.TimeUnit
import javax.net.ssl.KeyManagerFactory

/** Whom the SDK talks to in the clear, and whom it trusts. */
class CoordinatorAddressTest {
    @get:Rule val folder = TemporaryFolder()

    private val opened = ArrayList<ManagedChannel>()
    private val servers = ArrayList<Server>()

    @After fun close() {
        opened.forEach { it.shutdownNow().awaitTermination(5, TimeUnit.SECONDS) }
        servers.forEach { it.shutdownNow().awaitTermination(5, TimeUnit.SECONDS) }
    }

    private fun connect(
        address: String,
        authority: ByteArray? = null,
        insecure: Boolean = false,
    ): ManagedChannel = CoordinatorAddress(address).connect(authority, insecure).also(opened::add)

    private fun answers(channel: ManagedChannel): Throwable? =
        runCatching {
            runBlocking {
                DeviceServiceCoroutineStub(channel).withDeadlineAfter(10, TimeUnit.SECONDS).enrol(
                    enrolRequest {
                        deviceKey =
                            "k"
                    },
                )
            }
        }.exceptionOrNull()

    @Test fun `addresses that are none are named`() {
        for (wrong in listOf(
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:x",
            ":443",
            "a b:1",
            "::1:443",
            "http://host:443",
        )) {
            val error = runCatching { CoordinatorAddress(wrong) }.exceptionOrNull()
            assertTrue("$wrong: $error", error is IllegalArgumentException && "host and port" in error.message!!)
        }
        for (right in listOf(
            "fl.example.com:443",
            "127.0.0.1:7447",
            "[::1]:7447",
        )) {
            assertNotNull(CoordinatorAddress(right))
        }
    }

    @Test fun `the loopback address is spoken to in the clear`() {
        InMemoryCoordinator(bundleFolder()).use { coordinator ->
            val port = coordinator.listen()

            assertEquals(null, answers(connect("127.0.0.1:$port")))
            assertEquals(null, answers(connect("localhost:$port")))
        }
    }

    @Test fun `a given authority is trusted, the system's alone is not enough`() {
        val (port, authority) = secureServer()

        assertEquals(null, answers(connect("localhost:$port", authority)))
        assertTrue(answers(connect("localhost:$port", otherAuthority())) is StatusException)
        // In the clear a TLS server does not answer either.
        assertTrue(answers(connect("localhost:$port")) is StatusException)
    }

    @Test fun `other hosts are spoken to in TLS, unless the app insists`() {
        InMemoryCoordinator(bundleFolder()).use { coordinator ->
            val port = coordinator.listen()
            // Names this machine, but as nothing that is known to stay on it.
            val name = "0.0.0.0:$port"

            assertTrue(answers(connect(name)) is StatusException)
            assertEquals(null, answers(connect(name, insecure = true)))
        }
    }

    private fun bundleFolder() = File(System.getProperty("chainfed.vectors"), "bundles/encoder/bundle")

    /** A TLS server whose certificate signs itself; its port and the certificate in PEM. */
    private fun secureServer(): Pair<Int, ByteArray> {
        val store = certificate("server")
        val managers =
            KeyManagerFactory
                .getInstance(
                    KeyManagerFactory.getDefaultAlgorithm(),
                ).apply { init(store, PASSWORD.toCharArray()) }
        val credentials = TlsServerCredentials.newBuilder().keyManager(*managers.keyManagers).build()
        val server = OkHttpServerBuilder.forPort(0, credentials).addService(enrolment()).build().start()
        servers += server
        return server.port to pem(store)
    }

    private fun enrolment(): ServerServiceDefinition =
        object : ai.chainfed.v1.DeviceServiceGrpcKt.DeviceServiceCoroutineImplBase() {
            override suspend fun enrol(request: ai.chainfed.v1.EnrolRequest): ai.chainfed.v1.EnrolResponse =
                ai.chainfed.v1.EnrolResponse.getDefaultInstance()
        }.bindService()

    private fun otherAuthority(): ByteArray = pem(certificate("other"))

    private fun certificate(name: String): KeyStore {
        val file = File(folder.root, name)
        val process =
            ProcessBuilder(
                "${System.getProperty("java.home")}/bin/keytool",
                "-genkeypair",
                "-alias",
                "a",
                "-keyalg",
                "EC",
                "-groupname",
                "secp256r1",
                "-dname",
                "CN=localhost",
                "-ext",
                "san=dns:localhost",
                "-validity",
                "30",
                "-storetype",
                "PKCS12",
                "-keystore",
                file.path,
                "-storepass",
                PASSWORD,
            ).redirectErrorStream(true).start()
        val said = process.inputStream.reader().readText()
        check(process.waitFor() == 0) { said }
        return KeyStore.getInstance("PKCS12").apply { file.inputStream().use { load(it, PASSWORD.toCharArray()) } }
    }

    private fun pem(store: KeyStore): ByteArray {
        val body = Base64.getMimeEncoder(64, "\n".toByteArray()).encodeToString(store.getCertificate("a").encoded)
        return "-----BEGIN CERTIFICATE-----\n$body\n-----END CERTIFICATE-----\n".toByteArray()
    }

    private companion object {
        const val PASSWORD = "changeit"
    }
}
