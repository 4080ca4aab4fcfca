package ai.chainfed.android

import ai.chainfed.v1.CheckInRequest
import ai.chainfed.v1.CheckInResponse
import ai.chainfed.v1.DeviceServiceGrpcKt.DeviceServiceCoroutineImplBase
import ai.chainfed.v1.EnrolRequest
import ai.chainfed.v1.EnrolResponse
import ai.chainfed.v1.checkInResponse
import ai.chainfed.v1.enrolResponse
import ai.chainfed.v1.finished
import io.grpc.ManagedChannel
import io.grpc.Metadata
import io.grpc.Status
import io.grpc.StatusException
import io.grpc.inprocess.InProcessChannelBuilder
import io.grpc.inprocess.InProcessServerBuilder
import java.io.Closeable

/** A coordinator that admits a device only with [token], and then has nothing for it to do. */
internal class GuardedCoordinator(
    private val token: String,
) : Closeable {
    private val name = InProcessServerBuilder.generateName()
    private val server =
        InProcessServerBuilder
            .forName(name)
            .addService(Service())
            .build()
            .start()

    fun connect(): ManagedChannel = InProcessChannelBuilder.forName(name).build()

    override fun close() {
        server.shutdownNow().awaitTermination()
    }

    private inner class Service : DeviceServiceCoroutineImplBase() {
        override suspend fun enrol(request: EnrolRequest): EnrolResponse {
            if (request.enrolmentToken != token) throw refusal()
            return enrolResponse { deviceId = "0123456789abcdef" }
        }

        override suspend fun checkIn(request: CheckInRequest): CheckInResponse =
            checkInResponse { finished = finished { reason = "It is over." } }
    }

    private fun refusal(): StatusException {
        val key = Metadata.Key.of("chainfed-error", Metadata.ASCII_STRING_MARSHALLER)
        val trailers = Metadata().apply { put(key, "UNAUTHORIZED") }
        return StatusException(Status.UNAUTHENTICATED.withDescription("No valid enrolment token."), trailers)
    }
}
