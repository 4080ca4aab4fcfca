package ai.chainfed.core

/**
 * Whether a device may work at this moment. Asked before work begins and after every batch and step, on the thread that
 * works.
 */
public fun interface WorkPolicy {
    /** Why the device must not work now, in a few words for the operator ("not charging"); null when it may. */
    public fun objection(): String?
}
