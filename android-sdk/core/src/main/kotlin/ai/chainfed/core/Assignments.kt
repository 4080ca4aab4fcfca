package ai.chainfed.core

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.v1.AbandonReason
import ai.chainfed.v1.Assignment
import java.io.File
import java.io.IOException

/** Ends the work on an assignment, to be given back for [reason]; no error. */
internal class StopWork(
    val reason: AbandonReason,
    message: String,
) : Exception(message)

/** Processor time of all processes that worked on an assignment, summed, and the highest peaks. */
internal data class Usage(
    val cpuSeconds: Double,
    val peakAnonymousBytes: Long,
    val peakResidentBytes: Long,
)

/** An assignment's outcome and what it took. */
internal class Finding(
    val outcome: Outcome,
    val usage: Usage,
)

/**
 * Looks at the names by which the device will keep files, which come from elsewhere, and at the kind of task.
 *
 * @throws ChainFedException.BadBundle when one could lead out of the state folder, or the task is not known.
 */
internal fun requireUsable(assignment: Assignment) {
    val blobs = (assignment.filesList + assignment.stateList).map { it.blob } + assignment.manifest
    if (!ASSIGNMENT_ID.matches(assignment.assignmentId) || !blobs.all { SHA256.matches(it.sha256) }) {
        throw ChainFedException.BadBundle(
            "The coordinator sent an assignment with an id that is not 1 to 64 letters, digits, - and _, or a " +
                "SHA-256 that is not 64 hexadecimal digits; check that the address is the coordinator's.",
        )
    }
    if (assignment.taskCase == Assignment.TaskCase.TASK_NOT_SET) throw unknownTask()
}

private fun unknownTask() =
    ChainFedException.BadBundle("The coordinator sent a task that this ChainFed does not know; install a newer one.")

private val ASSIGNMENT_ID = Regex("[0-9A-Za-z_-]{1,64}")
private val SHA256 = Regex("[0-9a-f]{64}")

/** The journal of an assignment: the one that a killed process left, when it was about the same work. */
internal fun openJournal(
    storage: DeviceStorage,
    assignment: Assignment,
    data: TokenData,
): Journal =
    Journal(
        File(storage.work, assignment.assignmentId),
        mapOf(
            "assignment" to assignment.assignmentId,
            "manifest" to assignment.manifest.sha256,
            "data" to data.fingerprint,
            "boot" to bootId(),
        ),
    )

/** Names the time since the system started; empty where it does not tell. */
private fun bootId(): String =
    try {
        File("/proc/sys/kernel/random/boot_id").readText().trim()
    } catch (_: IOException) {
        ""
    }

/** What is wanted of the work on one assignment beside the work itself. */
internal class WorkSettings(
    val memoryBudgetBytes: Long,
    val policy: WorkPolicy,
    val policyPatienceMillis: Long,
    val mappings: Mappings,
    val cpuSeconds: () -> Double,
    val prefetch: (File) -> Unit,
    val tell: (String) -> Unit,
    val pause: (String) -> Unit,
)

/**
 * Does the work of an assignment, or finds that it is done.
 *
 * [pieces]: the pieces of the model state by name. [data]: the training or the held-out rows, as the task needs them.
 *
 * @throws StopWork when the deadline has passed or the policy does not hold.
 */
internal suspend fun compute(
    storage: DeviceStorage,
    assignment: Assignment,
    bundle: DeviceBundle,
    pieces: Map<String, File>,
    data: TokenData,
    journal: Journal,
    settings: WorkSettings,
): Finding {
    findOutcome(journal)?.let { return Finding(it, usageOf(journal)) }
    checkBudget(bundle.manifest, assignment, settings.memoryBudgetBytes)
    val kept = keptDepth(storage, assignment, bundle, pieces, data)
    val isEvaluation = assignment.taskCase == Assignment.TaskCase.EVALUATE
    val most = if (isEvaluation) assignment.evaluate.maxExamples else 0
    val rows = if (most in 1 until data.numRows) data.select(IntArray(most.toInt()) { it }) else data
    val outcome =
        settings.mappings.Scope().use { scope ->
            val state = ModelState(bundle.manifest, pieces.mapValues { (name, file) -> Shard(file, scope, name) })
            Session(journal, assignment, settings).use { session ->
                val work =
                    Work(
                        bundle,
                        state,
                        rows,
                        journal,
                        assignment.seed,
                        kept,
                        settings.mappings,
                        settings.prefetch,
                        session::checkpoint,
                    )
                run(work, assignment).also {
                    session.note()
                    recordOutcome(journal, it)
                }
            }
        }
    kept?.let { storage.keepInCache(roleOf(assignment), it.file) }
    return Finding(outcome, usageOf(journal))
}

private suspend fun run(
    work: Work,
    assignment: Assignment,
): Outcome =
    when (assignment.taskCase) {
        Assignment.TaskCase.PROFILE -> {
            if (work.data.numRows < 2) {
                throw StopWork(
                    AbandonReason.ABANDON_REASON_NO_EXAMPLES,
                    "Profiling needs two examples, the device has one.",
                )
            }
            profile(work, assignment.profile)
        }

        Assignment.TaskCase.WARMUP -> warmUp(work, assignment.warmup)

        Assignment.TaskCase.TRAIN -> train(work, assignment.train)

        Assignment.TaskCase.EVALUATE -> evaluate(work)

        else -> throw unknownTask()
    }

/** One process's work on an assignment: what it has used, and whether it may go on. */
private class Session(
    private val journal: Journal,
    private val assignment: Assignment,
    private val settings: WorkSettings,
) : java.io.Closeable {
    private val number = journal.find("usage").map { (it as JsonList).values[0].whole() }.distinct().size.toLong()
    private val cpuBefore = settings.cpuSeconds()
    private val meter = MemoryMeter()

    fun note() {
        journal.append(
            "usage",
            JsonList(
                listOf(
                    JsonNumber.of(number),
                    JsonNumber.of(settings.cpuSeconds() - cpuBefore),
                    JsonNumber.of(meter.peakAnonymousBytes),
                    JsonNumber.of(meter.peakResidentBytes),
                ),
            ),
        )
    }

    suspend fun checkpoint(message: String) {
        kotlinx.coroutines.yield()
        checkDeadline()
        settings.policy.objection()?.let { awaitPolicy(it) }
        if (message.isNotEmpty()) {
            note()
            settings.tell(message)
        }
    }

    private fun checkDeadline() {
        if (assignment.deadlineUnixMs in 1 until System.currentTimeMillis()) {
            throw StopWork(AbandonReason.ABANDON_REASON_INTERNAL, "The deadline passed before the work was done.")
        }
    }

    /** Stands still until the policy holds again; gives the work back when that takes too long. */
    private suspend fun awaitPolicy(objection: String) {
        settings.pause(objection)
        val until = System.nanoTime() + settings.policyPatienceMillis * NANOS_PER_MILLI
        var reason = objection
        while (System.nanoTime() < until) {
            kotlinx.coroutines.delay(POLICY_POLL_MILLIS)
            checkDeadline()
            reason = settings.policy.objection() ?: return
        }
        throw StopWork(AbandonReason.ABANDON_REASON_POLICY, "The work policy does not hold: $reason.")
    }

    override fun close(): Unit = meter.close()

    private companion object {
        const val NANOS_PER_MILLI = 1_000_000L
        const val POLICY_POLL_MILLIS = 500L
    }
}

private fun usageOf(journal: Journal): Usage {
    val last = LinkedHashMap<Long, Double>()
    var anonymous = 0L
    var resident = 0L
    for (record in journal.find("usage")) {
        val (session, cpu, own, all) = (record as JsonList).values
        last[session.whole()] = cpu.number()
        anonymous = maxOf(anonymous, own.whole())
        resident = maxOf(resident, all.whole())
    }
    return Usage(sumInOrder(last.values), anonymous, resident)
}

private fun checkBudget(
    manifest: Manifest,
    assignment: Assignment,
    budget: Long,
) {
    val isTraining = assignment.taskCase == Assignment.TaskCase.TRAIN
    val needed =
        if (isTraining) manifest.roundBytes(assignment.train.windowSize) else manifest.prefix.anonymousBytes
    if (budget in 1 until needed) {
        throw ChainFedException.MemoryBudget(
            "The work needs ${megabytes(needed)} MB of memory, the device may use ${megabytes(budget)} MB.",
        )
    }
}

private fun megabytes(bytes: Long): Long = (bytes + MEGA - 1) / MEGA

private const val MEGA = 1_000_000L

/** The output of the last layer below the first one that is trained: it does not change from round to round. */
private fun keptDepth(
    storage: DeviceStorage,
    assignment: Assignment,
    bundle: DeviceBundle,
    pieces: Map<String, File>,
    data: TokenData,
): KeptDepth? {
    val depth = assignment.foatStart
    if (depth >= bundle.manifest.model.numLayers || assignment.taskCase == Assignment.TaskCase.PROFILE) return null
    val adapters = (0 until depth).mapNotNull { pieces["adapters.$it"]?.name }
    val parts = listOf(bundle.manifestSha256, data.fingerprint, depth.toString()) + adapters
    val key = sha256().digest(parts.joinToString("/").toByteArray()).toHex().take(KEY_LENGTH)
    return KeptDepth(depth, File(storage.cache, "${roleOf(assignment)}-$key"), data.numBatches)
}

private const val KEY_LENGTH = 32

private fun roleOf(assignment: Assignment): String =
    if (assignment.taskCase == Assignment.TaskCase.EVALUATE) "test" else "train"
