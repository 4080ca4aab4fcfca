package ai.chainfed.testing

import ai.chainfed.v1.Assignment
import ai.chainfed.v1.AssignmentKt
import ai.chainfed.v1.GlobalBranchStatistics
import ai.chainfed.v1.assignment
import ai.chainfed.v1.evaluateTask
import ai.chainfed.v1.profileTask
import ai.chainfed.v1.trainTask
import ai.chainfed.v1.warmupTask
import io.grpc.InsecureServerCredentials
import io.grpc.ManagedChannel
import io.grpc.Server
import io.grpc.inprocess.InProcessChannelBuilder
import io.grpc.inprocess.InProcessServerBuilder
import io.grpc.okhttp.OkHttpServerBuilder
import java.io.Closeable
import java.io.File
import java.util.UUID
import java.util.concurrent.TimeUnit

/**
 * A coordinator in the test's own process, for an app's unit tests: it hands out the tasks that the test queues, over a
 * bundle's initial state, checks signatures, and keeps what devices say. It aggregates nothing, and every assignment
 * names all of the bundle's files.
 *
 * A task is given to whoever asks next, stays with that device until it is handed in, and is queued again when it is
 * given back. When none is left, devices are told to wait, or with [finishWhenDone] that they are finished.
 * Thread-safe.
 *
 * @param bundle a bundle's folder, of a small model.
 */
public class InMemoryCoordinator
    @JvmOverloads
    constructor(
        bundle: File,
        finishWhenDone: Boolean = true,
    ) : Closeable {
        private val blobs = BundleBlobs(bundle)
        private val desk = AssignmentDesk(finishWhenDone)
        private val service = InMemoryDeviceService(blobs, desk)
        private val name = "chainfed-${UUID.randomUUID()}"
        private val servers = ArrayList<Server>()
        private var round = 0

        init {
            start(InProcessServerBuilder.forName(name).addService(service).build())
        }

        /** What devices said, in the order in which it came. */
        public val heard: List<Heard>
            get() = desk.heard()

        /** While true every call fails as if nobody listened. */
        public var isSilent: Boolean by service::isSilent

        /**
         * Queues training of the window of [windowSize] layers from [firstLayer] on, counted from 0, for [epochs]
         * passes.
         */
        @JvmOverloads
        public fun train(
            firstLayer: Int,
            windowSize: Int,
            epochs: Int = 1,
        ): InMemoryCoordinator =
            queue {
                train =
                    trainTask {
                        this.firstLayer = firstLayer
                        this.windowSize = windowSize
                        localEpochs = epochs
                        adapterLr = ADAPTER_LR
                        headLr = HEAD_LR
                        globalLossWeight = GLOBAL_LOSS_WEIGHT
                        globalBranchStatistics = GlobalBranchStatistics.GLOBAL_BRANCH_STATISTICS_WINDOW_END
                    }
            }

        /** Queues an evaluation of all held-out examples. */
        public fun evaluate(): InMemoryCoordinator = queue { evaluate = evaluateTask { } }

        /** Queues a profile of at most [maxExamples] examples. */
        @JvmOverloads
        public fun profile(maxExamples: Int = 32): InMemoryCoordinator =
            queue {
                profile = profileTask { this.maxExamples = maxExamples }
                foatStart = blobs.numLayers
            }

        /** Queues training of the heads of all layers, for [epochs] passes. */
        @JvmOverloads
        public fun warmUp(epochs: Int = 1): InMemoryCoordinator =
            queue {
                warmup =
                    warmupTask {
                        headLayers += 0 until blobs.numLayers
                        localEpochs = epochs
                        headLr = HEAD_LR
                    }
            }

        /** A channel to it within the process; whoever asked closes it. */
        public fun connect(): ManagedChannel = InProcessChannelBuilder.forName(name).build()

        /** Listens on the loopback address too, in the clear; returns the port. */
        public fun listen(): Int =
            start(OkHttpServerBuilder.forPort(0, InsecureServerCredentials.create()).addService(service).build()).port

        override fun close() {
            servers.forEach { it.shutdownNow() }
            servers.forEach { it.awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS) }
        }

        private fun start(server: Server): Server = server.start().also { servers += it }

        @Synchronized private fun queue(task: AssignmentKt.Dsl.() -> Unit): InMemoryCoordinator {
            desk.queue(newAssignment(task))
            return this
        }

        private fun newAssignment(task: AssignmentKt.Dsl.() -> Unit): Assignment =
            assignment {
                assignmentId = sha256Of("$name/$round".toByteArray()).take(ID_DIGITS)
                runId = "in-memory"
                this.round = this@InMemoryCoordinator.round++
                manifest = blobs.manifest
                files += blobs.files
                state += blobs.state
                seed = SEED + this.round
                deadlineUnixMs = System.currentTimeMillis() + DEADLINE_MILLIS
                task()
            }

        private companion object {
            const val ADAPTER_LR = 1e-3f
            const val HEAD_LR = 3e-3f
            const val GLOBAL_LOSS_WEIGHT = 0.1f
            const val ID_DIGITS = 32
            const val SEED = 1_000L
            const val DEADLINE_MILLIS = 3_600_000L
            const val CLOSE_SECONDS = 5L
        }
    }
