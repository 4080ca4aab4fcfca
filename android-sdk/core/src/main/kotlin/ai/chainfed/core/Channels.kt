package ai.chainfed.core

import io.grpc.ManagedChannel
import io.grpc.okhttp.OkHttpChannelBuilder
import java.util.concurrent.TimeUnit

/**
 * A channel to a coordinator with the sizes that both ends agree on (`docs/device.md` section 1); it connects when it
 * is first used, and the caller shuts it down.
 *
 * gRPC's own flow-control window would hold megabytes for each stream, this one a piece of a blob. gRPC's own retries
 * are off: the device knows what has arrived, gRPC would send it all again.
 *
 * @param builder with the address and how the connection is secured.
 */
public fun coordinatorChannel(builder: OkHttpChannelBuilder): ManagedChannel =
    builder
        .flowControlWindow(FLOW_CONTROL_BYTES)
        .maxInboundMessageSize(MAX_MESSAGE_BYTES)
        .disableRetry()
        .keepAliveTime(KEEP_ALIVE_SECONDS, TimeUnit.SECONDS)
        .keepAliveTimeout(KEEP_ALIVE_TIMEOUT_SECONDS, TimeUnit.SECONDS)
        .build()

private const val FLOW_CONTROL_BYTES = 262_144
private const val MAX_MESSAGE_BYTES = 17 * 1024 * 1024
private const val KEEP_ALIVE_SECONDS = 60L
private const val KEEP_ALIVE_TIMEOUT_SECONDS = 20L
