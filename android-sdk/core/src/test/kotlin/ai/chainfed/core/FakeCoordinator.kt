package ai.chainfed.core

import ai.chainfed.v1.AbandonRequest
import ai.chainfed.v1.AbandonResponse
import ai.chainfed.v1.BlobRef
import ai.chainfed.v1.CheckInRequest
import ai.chainfed.v1.CheckInResponse
import ai.chainfed.v1.DeviceServiceGrpcKt.DeviceServiceCoroutineImplBase
import ai.chainfed.v1.EnrolRequest
import ai.chainfed.v1.EnrolResponse
import ai.chainfed.v1.FetchBlobRequest
import ai.chainfed.v1.FetchBlobResponse
import ai.chainfed.v1.QueryUploadRequest
import ai.chainfed.v1.QueryUploadResponse
import ai.chainfed.v1.SubmitEvaluationRequest
import ai.chainfed.v1.SubmitEvaluationResponse
import ai.chainfed.v1.SubmitProfileRequest
import ai.chainfed.v1.SubmitProfileResponse
import ai.chainfed.v1.SubmitUpdateRequest
import ai.chainfed.v1.SubmitUpdateResponse
import ai.chainfed.v1.UpdateHeader
import ai.chainfed.v1.abandonResponse
import ai.chainfed.v1.blobRef
import ai.chainfed.v1.enrolResponse
import ai.chainfed.v1.fetchBlobResponse
import ai.chainfed.v1.queryUploadResponse
import ai.chainfed.v1.submitEvaluationResponse
import ai.chainfed.v1.submitProfileResponse
import ai.chainfed.v1.submitUpdateResponse
import com.google.protobuf.ByteString
import io.grpc.ManagedChannel
import io.grpc.Metadata
import io.grpc.Status
import io.grpc.StatusException
import io.grpc.inprocess.InProcessChannelBuilder
import io.grpc.inprocess.InProcessServerBuilder
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import org.junit.rules.ExternalResource
import java.io.ByteArrayOutputStream
import java.security.MessageDigest

/** A coordinator in this process that does what a test tells it, and keeps what it hears. */
class FakeCoordinator : ExternalResource() {
    val blobs = HashMap<String, ByteArray>()

    /** Of the next downloads and uploads: break off after so many pieces. */
    val breakAfter = ArrayDeque<Int>()

    /** What the next calls end with instead of an answer; null: with their answer. */
    val failures = ArrayDeque<StatusException?>()
    val answers = ArrayDeque<CheckInResponse>()
    val offsets = ArrayList<Long>()
    var accepted = false
    val received = ByteArrayOutputStream()
    val enrolments = ArrayList<EnrolRequest>()
    val checkIns = ArrayList<CheckInRequest>()
    val headers = ArrayList<UpdateHeader>()
    val updates = ArrayList<ByteArray>()
    val profiles = ArrayList<SubmitProfileRequest>()
    val evaluations = ArrayList<SubmitEvaluationRequest>()
    val abandoned = ArrayList<AbandonRequest>()
    var counted = true

    private val name = InProcessServerBuilder.generateName()
    private val server = InProcessServerBuilder.forName(name).addService(Service()).build()
    val channel: ManagedChannel = InProcessChannelBuilder.forName(name).build()

    override fun before() {
        server.start()
    }

    override fun after() {
        channel.shutdownNow()
        server.shutdownNow().awaitTermination()
    }

    /** Serves [sent] under the name of [data]. */
    fun put(
        data: ByteArray,
        sent: ByteArray = data,
    ): BlobRef {
        val name = MessageDigest.getInstance("SHA-256").digest(data).toHex()
        blobs[name] = sent
        return blobRef {
            sha256 = name
            sizeBytes = data.size.toLong()
        }
    }

    private fun <T> answer(response: () -> T): T {
        failures.removeFirstOrNull()?.let { throw it }
        return response()
    }

    private inner class Service : DeviceServiceCoroutineImplBase() {
        override suspend fun enrol(request: EnrolRequest): EnrolResponse =
            answer {
                enrolments += request
                enrolResponse { deviceId = "0123456789abcdef" }
            }

        override suspend fun checkIn(request: CheckInRequest): CheckInResponse =
            answer {
                checkIns += request
                answers.removeFirst()
            }

        override fun fetchBlob(request: FetchBlobRequest): Flow<FetchBlobResponse> =
            flow {
                offsets += request.offset
                val limit = breakAfter.removeFirstOrNull()
                val rest = blobs.getValue(request.sha256).drop(request.offset.toInt())
                if (rest.isEmpty()) emit(fetchBlobResponse { })
                rest.chunked(PIECE_BYTES).forEachIndexed { number, piece ->
                    if (number == limit) throw StatusException(Status.UNAVAILABLE)
                    emit(fetchBlobResponse { data = ByteString.copyFrom(piece.toByteArray()) })
                }
                if (limit != null) throw StatusException(Status.UNAVAILABLE)
            }

        override suspend fun queryUpload(request: QueryUploadRequest): QueryUploadResponse {
            val size = received.size().toLong()
            val isAccepted = accepted
            return queryUploadResponse {
                receivedBytes = size
                accepted = isAccepted
            }
        }

        override suspend fun submitUpdate(requests: Flow<SubmitUpdateRequest>): SubmitUpdateResponse {
            var number = 0
            val limit = breakAfter.removeFirstOrNull()
            requests.collect { request ->
                if (request.hasHeader()) {
                    headers += request.header
                    answer { check(request.header.offset == received.size().toLong()) }
                } else {
                    if (number++ == limit) throw StatusException(Status.UNAVAILABLE)
                    received.write(request.chunk.toByteArray())
                }
            }
            updates += received.toByteArray()
            received.reset()
            val doesCount = counted
            return submitUpdateResponse { counted = doesCount }
        }

        override suspend fun submitProfile(request: SubmitProfileRequest): SubmitProfileResponse =
            answer {
                profiles += request
                submitProfileResponse { }
            }

        override suspend fun submitEvaluation(request: SubmitEvaluationRequest): SubmitEvaluationResponse =
            answer {
                evaluations += request
                submitEvaluationResponse { }
            }

        override suspend fun abandon(request: AbandonRequest): AbandonResponse =
            answer {
                abandoned += request
                abandonResponse { }
            }
    }

    companion object {
        private const val PIECE_BYTES = 1000
        private val CODE = Metadata.Key.of("chainfed-error", Metadata.ASCII_STRING_MARSHALLER)

        /** What the coordinator says by [code]. */
        fun refusal(
            code: String,
            sentence: String,
            status: Status = Status.FAILED_PRECONDITION,
        ): StatusException = StatusException(status.withDescription(sentence), Metadata().apply { put(CODE, code) })
    }
}
