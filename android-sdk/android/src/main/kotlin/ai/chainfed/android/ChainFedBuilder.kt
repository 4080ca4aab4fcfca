package ai.chainfed.android

import ai.chainfed.core.DeviceKeys
import ai.chainfed.core.DeviceStateSource
import ai.chainfed.core.ExampleSource
import android.content.Context
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.runInterruptible
import java.util.concurrent.Callable

/** Gives the device's examples. Called on a background thread whenever work begins; may block. */
public fun interface ExampleProvider {
    /**
     * The examples as they are now. What it throws ends this attempt; only the exception's type is told. The thread is
     * interrupted when the work is stopped.
     */
    public fun examples(): ExampleSource
}

/**
 * Says how ChainFed works in this app; see [ChainFed.configure]. Every function returns the builder, none does anything
 * before [configure]. For one thread. IllegalArgumentException names what cannot be.
 */
public class ChainFedBuilder internal constructor(
    private val context: Context,
) {
    private var address: CoordinatorAddress? = null
    private var authority: ByteArray? = null
    private var insecure = false
    private var channels: ChannelFactory? = null
    private var token: suspend () -> String = { "" }
    private var examples: ExampleProvider? = null
    private var policy = PolicyBuilder().build()
    private var notification: LongWorkNotification? = NotificationBuilder().build()
    private var keys: DeviceKeys? = null
    private var deviceState: DeviceStateSource? = null

    /**
     * Where the coordinator listens, "host:port". The connection is TLS and trusts what the system trusts. To this
     * device itself (localhost, 127.x.x.x, ::1) and to 10.0.2.2, the computer that an emulator runs on, it is in the
     * clear.
     */
    public fun coordinator(address: String): ChainFedBuilder = apply { this.address = CoordinatorAddress(address) }

    /** Trusts only what these certificates (PEM) have signed, wherever the coordinator listens. */
    public fun certificateAuthority(pem: ByteArray): ChainFedBuilder = apply { authority = pem.copyOf() }

    /**
     * Talks to the coordinator in the clear: anybody on the way reads and changes what is sent. Not for a released app.
     */
    public fun insecure(): ChainFedBuilder = apply { insecure = true }

    /** Uses channels of the app's own making, for example to a coordinator in the same process. */
    public fun channel(factory: ChannelFactory): ChainFedBuilder = apply { channels = factory }

    /**
     * What the coordinator asks of a device that it does not know yet: called on a background thread when it refuses
     * the device without one. What [token] throws ends this attempt, which is tried again; only the exception's type is
     * told.
     */
    public fun enrolment(token: suspend () -> String): ChainFedBuilder = apply { this.token = token }

    /**
     * The same for callers who have no coroutines; [token] may block, and is interrupted when the work is stopped.
     */
    public fun enrolmentToken(token: Callable<String>): ChainFedBuilder =
        apply { this.token = { runInterruptible(Dispatchers.IO) { token.call() } } }

    /** Where the examples come from. Required. */
    public fun examples(source: ExampleProvider): ChainFedBuilder = apply { examples = source }

    /** When ChainFed may work; without it on any network that is not a foreign one, at any time. */
    public fun policy(rules: PolicyBuilder.() -> Unit): ChainFedBuilder = policy(PolicyBuilder().apply(rules).build())

    /** The same, built before. */
    public fun policy(policy: Policy): ChainFedBuilder = apply { this.policy = policy }

    /** How the notification looks that Android asks for while there is long work. */
    public fun notification(look: NotificationBuilder.() -> Unit): ChainFedBuilder =
        notification(NotificationBuilder().apply(look).build())

    /** The same, built before. */
    public fun notification(notification: LongWorkNotification): ChainFedBuilder =
        apply {
            this.notification =
                notification
        }

    /**
     * No notification: Android then ends the work after ten minutes, and it goes on from there at the next check-in.
     */
    public fun withoutNotification(): ChainFedBuilder = apply { notification = null }

    /**
     * The key that results are signed with; by default one in the Android key store. What [DeviceKeys] throws ends this
     * attempt, and the status tells it.
     */
    public fun keys(keys: DeviceKeys): ChainFedBuilder = apply { this.keys = keys }

    /** What the device is doing; by default what Android says. For tests. */
    public fun deviceState(source: DeviceStateSource): ChainFedBuilder = apply { deviceState = source }

    /**
     * ChainFed as told, for this process; see [ChainFed.configure].
     *
     * @throws IllegalStateException when the coordinator or the examples were not told.
     */
    public fun configure(): ChainFed = ChainFed.install(context.applicationContext ?: context, configuration())

    private fun configuration(): Configuration {
        val address = address
        val factory = channels
        check(address != null || factory != null) { "ChainFed.configure: say coordinator(\"host:port\")." }
        val authority = authority
        val insecure = insecure
        return Configuration(
            address?.toString() ?: "the app's own channel",
            factory ?: ChannelFactory { address!!.connect(authority, insecure) },
            token,
            checkNotNull(examples) { "ChainFed.configure: say examples { ... }." },
            policy,
            notification,
            keys,
            deviceState,
        )
    }
}

/** How ChainFed works in this app. [keys] and [deviceState]: null for Android's. */
internal class Configuration(
    val address: String,
    val channels: ChannelFactory,
    val token: suspend () -> String,
    val examples: ExampleProvider,
    val policy: Policy,
    val notification: LongWorkNotification?,
    val keys: DeviceKeys?,
    val deviceState: DeviceStateSource?,
)
