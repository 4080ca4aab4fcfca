package ai.chainfed.android

import ai.chainfed.core.ChainFedException

/**
 * What ChainFed is doing on this device and has done since it was enabled. Immutable; may be read on any thread.
 * Everything but [state] survives a process death.
 *
 * @property state what it is doing now.
 * @property roundsDone results handed in, of rounds of any kind.
 * @property peakMemoryBytes the most anonymous memory that any of them took, over what the process had before.
 * @property bytesDown received of bundles and model states. @property bytesUp sent of results.
 * @property battery what it all cost.
 * @property lastError the newest failure, also when the work has gone on since; null when there was none.
 */
@ConsistentCopyVisibility
public data class ChainFedStatus internal constructor(
    public val state: State,
    public val roundsDone: Int,
    public val peakMemoryBytes: Long,
    public val bytesDown: Long,
    public val bytesUp: Long,
    public val battery: BatteryCost,
    public val lastError: ChainFedException?,
) {
    /** What ChainFed is doing. */
    public sealed interface State {
        /** The user has not agreed, or no longer agrees: nothing runs. */
        public object Disabled : State {
            override fun toString(): String = "Disabled"
        }

        /** The user has agreed, and something has to come first: [reason], in words [message]. It goes on by itself. */
        public data class Waiting(
            public val reason: WaitReason,
            public val message: String,
        ) : State

        /**
         * An assignment is being worked on.
         *
         * @property round the run's round, from 0. @property kind what the round is for. @property progress where the
         * work is, in words for people ("layer 3 of 6").
         */
        public data class Working(
            public val round: Int,
            public val kind: RoundKind,
            public val progress: String,
        ) : State

        /** Every run that the device took part in has ended, for the [reason]. It asks again at the next check-in. */
        public data class Finished(
            public val reason: String,
        ) : State

        /** The last attempt failed. It is tried again, ever less often; [remedy] says what would help. */
        public data class Failed(
            public val error: ChainFedException,
            public val remedy: Remedy,
        ) : State
    }
}

/** What [ChainFedStatus.State.Waiting] waits for. */
public enum class WaitReason {
    /** Android has not started the work yet; it does when the policy's constraints hold, in its own time. */
    SCHEDULED,

    /** The coordinator has nothing to do for this device. */
    COORDINATOR,

    /** A rule of the policy does not hold. */
    POLICY,

    /** Android stopped the work; it goes on from the last step when Android starts it again. */
    STOPPED,

    /** The user agrees no more, and what is under way is being ended. */
    ENDING,
}

/** What a round is for. */
public enum class RoundKind { PROFILE, WARMUP, TRAIN, EVALUATE }

/** What helps after a failure. */
public enum class Remedy {
    /** Nothing need be done: the network, the coordinator, the enrolment token or the storage was not to be had. */
    WAIT,

    /** The user frees storage. */
    FREE_STORAGE,

    /** The app's developers correct its configuration, enrolment token or examples; the error's message says what. */
    CHECK_APP,

    /** The operator of the coordinator looks at the run; the error's message says what. */
    CHECK_COORDINATOR,

    /**
     * [ChainFed.disable] with `deleteData`, then [ChainFed.enable]: what is stored on the device cannot be used, or the
     * coordinator knows the device with another signing key.
     */
    DELETE_DATA,
}

/**
 * What the work cost, as far as the device tells.
 *
 * @property percent battery level lost while ChainFed worked and no charger fed the device, whoever used it up; 0 to
 * 100 for each full battery. Android tells whole percents, so a short piece of work may show none. @property
 * processorSeconds processor time of the app's process while ChainFed worked. @property workedSeconds time for which it
 * worked.
 */
public data class BatteryCost(
    public val percent: Int,
    public val processorSeconds: Double,
    public val workedSeconds: Double,
) {
    /** Both together. */
    public operator fun plus(other: BatteryCost): BatteryCost =
        BatteryCost(
            percent + other.percent,
            processorSeconds + other.processorSeconds,
            workedSeconds + other.workedSeconds,
        )
}

/** Hears of changes of the status; for callers who have no coroutines. */
public fun interface StatusListener {
    /**
     * Called with the newest status, one call at a time, on the executor that was given; some in between may be left
     * out.
     */
    public fun onStatus(status: ChainFedStatus)
}
