package ai.chainfed.android

import ai.chainfed.core.Heat
import ai.chainfed.core.WorkRules

/**
 * When ChainFed may work, and what it may take. Made by a [PolicyBuilder]; immutable.
 *
 * Always: there is a network, the memory is not low, power saving is off or a charger feeds the device, and the device
 * is not warmer than allowed.
 */
public class Policy internal constructor(
    internal val rules: WorkRules,
    internal val memoryBytes: Long?,
    internal val checkInMinutes: Long,
    internal val patienceMillis: Long,
    internal val threads: Int,
) {
    /** What Android's scheduler has to know of it; when that changes, the work is scheduled anew. */
    internal val fingerprint: String
        get() = "$rules every $checkInMinutes"
}

/** Builds a [Policy]; every function returns the builder. For one thread. */
public class PolicyBuilder {
    private var rules = WorkRules()
    private var memoryBytes: Long? = null
    private var checkInMinutes = SHORTEST_CHECK_IN_MINUTES
    private var patienceMillis = DEFAULT_PATIENCE_MILLIS
    private var threads = 1

    /** Only while a charger feeds the device. */
    public fun charging(): PolicyBuilder = apply { rules = rules.copy(charging = true) }

    /** Only while nobody uses the device. */
    public fun idle(): PolicyBuilder = apply { rules = rules.copy(idle = true) }

    /** Only on a network that costs nothing. */
    public fun unmetered(): PolicyBuilder = apply { rules = rules.copy(unmetered = true) }

    /** Also on a foreign network. */
    public fun roaming(): PolicyBuilder = apply { rules = rules.copy(roaming = true) }

    /** Only while the battery holds [percent] or more, 0 to 100. */
    public fun batteryAbove(percent: Int): PolicyBuilder {
        require(percent in 0..MAX_PERCENT) { "batteryAbove($percent): a battery holds 0 to 100 percent." }
        return apply { rules = rules.copy(minBatteryPercent = percent) }
    }

    /** Only while [bytes] or more of the device's storage are free; so ChainFed never takes the last room. */
    public fun storage(bytes: Long): PolicyBuilder {
        require(bytes >= 0) { "storage($bytes): give the bytes that must be free, 0 or more." }
        return apply { rules = rules.copy(minFreeStorageBytes = bytes) }
    }

    /**
     * Only while the device's thermal status is [heat] or cooler; [Heat.LIGHT] unless told. Known from Android 10 on.
     */
    public fun upTo(heat: Heat): PolicyBuilder = apply { rules = rules.copy(hottest = heat) }

    /**
     * The anonymous memory that the work may take, bytes; what does not fit is left to other devices. Unless told, half
     * of what is free above the system's threshold when the work begins.
     */
    public fun memory(bytes: Long): PolicyBuilder {
        require(bytes > 0) { "memory($bytes): give the bytes that the work may take, 1 or more." }
        return apply { memoryBytes = bytes }
    }

    /**
     * How often to ask the coordinator for work, minutes; Android allows no less than 15, which is what holds unless
     * told.
     */
    public fun checkInEvery(minutes: Long): PolicyBuilder {
        require(
            minutes >= SHORTEST_CHECK_IN_MINUTES,
        ) { "checkInEvery($minutes): Android allows no less than 15 minutes." }
        return apply { checkInMinutes = minutes }
    }

    /**
     * For how long work that a rule has stopped stands still and waits, seconds, before it is given back to the
     * coordinator; 60 unless told.
     *
     * Rules that are WorkManager's constraints too (charging, idle, network, unmetered, battery, storage) may not get
     * so far: where Android sees that one does not hold it stops the work at once. Nothing is given back then, and the
     * work goes on from the last step when the rule holds again.
     */
    public fun patience(seconds: Long): PolicyBuilder {
        require(seconds >= 0) { "patience($seconds): give 0 seconds or more." }
        return apply { patienceMillis = seconds * MILLIS_PER_SECOND }
    }

    /** Threads to compute with; 1 unless told. More take more of the battery in a shorter time. */
    public fun threads(count: Int): PolicyBuilder {
        require(count >= 1) { "threads($count): it takes 1 thread or more." }
        return apply { threads = count }
    }

    /** So many million bytes. */
    public val Int.megabytes: Long
        get() = this * BYTES_PER_MEGABYTE

    /** The policy. */
    public fun build(): Policy = Policy(rules, memoryBytes, checkInMinutes, patienceMillis, threads)

    private companion object {
        const val MAX_PERCENT = 100
        const val SHORTEST_CHECK_IN_MINUTES = 15L
        const val DEFAULT_PATIENCE_MILLIS = 60_000L
        const val MILLIS_PER_SECOND = 1_000L
        const val BYTES_PER_MEGABYTE = 1_000_000L
    }
}
