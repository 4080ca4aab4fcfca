package ai.chainfed.testing

import ai.chainfed.v1.AbandonReason
import ai.chainfed.v1.Assignment

/** Which tasks wait, who works on what, and what was said. Thread-safe. */
internal class AssignmentDesk(
    private val finishWhenDone: Boolean,
) {
    /** What a device gets that asks for work. */
    sealed class Answer {
        class Work(
            val assignment: Assignment,
        ) : Answer()

        object Wait : Answer()

        object Finished : Answer()
    }

    private val waiting = ArrayDeque<Assignment>()
    private val open = HashMap<String, Assignment>()
    private val said = ArrayList<Heard>()
    private var timesGivenBack = 0

    @Synchronized fun queue(assignment: Assignment) {
        waiting.addLast(assignment)
    }

    @Synchronized fun hear(what: Heard) {
        said += what
    }

    @Synchronized fun heard(): List<Heard> = said.toList()

    /** The device's open assignment, or the next one. */
    @Synchronized fun answer(deviceId: String): Answer {
        val assignment = open[deviceId] ?: waiting.removeFirstOrNull()
        if (assignment == null) return if (finishWhenDone && open.isEmpty()) Answer.Finished else Answer.Wait
        open[deviceId] = assignment
        said += Heard.Assigned(deviceId, assignment.assignmentId)
        return Answer.Work(assignment)
    }

    /** Whether this device works on this assignment. */
    @Synchronized fun isOpen(
        deviceId: String,
        assignmentId: String,
    ): Boolean = open[deviceId]?.assignmentId == assignmentId

    /** Takes a result once: a second delivery changes nothing. */
    @Synchronized fun complete(
        deviceId: String,
        assignmentId: String,
        result: Heard,
    ) {
        if (!isOpen(deviceId, assignmentId)) return
        open.remove(deviceId)
        said += result
    }

    /**
     * Work that a policy stopped is queued again under another name, as in a coordinator's new attempt; other work is
     * dropped, since the same device would fail at it again.
     */
    @Synchronized fun giveBack(
        deviceId: String,
        assignmentId: String,
        what: Heard.Abandonment,
    ) {
        if (!isOpen(deviceId, assignmentId)) return
        val assignment = open.remove(deviceId)!!
        said += what
        if (what.reason != AbandonReason.ABANDON_REASON_POLICY) return
        timesGivenBack += 1
        val id = sha256Of("$assignmentId/$timesGivenBack".toByteArray()).take(assignmentId.length)
        waiting.addFirst(assignment.toBuilder().setAssignmentId(id).build())
    }
}
