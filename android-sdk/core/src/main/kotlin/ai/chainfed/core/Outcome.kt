package ai.chainfed.core

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.JsonValue
import java.io.File

/** What a task gives: the record that outlives the process that computed it. */
internal sealed class Outcome {
    /** FOAT's result: a score for each layer; the statistics lie in the file of this SHA-256. */
    data class Profile(
        val numExamples: Long,
        val scores: List<Double>,
        val tensorsSha256: String,
    ) : Outcome()

    /** A training task's result; losses are means over the steps, the changes lie in the file of this SHA-256. */
    data class Update(
        val numExamples: Long,
        val numSteps: Long,
        val loss: Double,
        val localLoss: Double,
        val globalLoss: Double,
        val accuracy: Double,
        val tensorsSha256: String,
    ) : Outcome()

    /** Counts over held-out examples; [lossSum] in nats. */
    data class Evaluation(
        val numExamples: Long,
        val numCorrect: Long,
        val lossSum: Double,
    ) : Outcome()
}

/**
 * Writes a result's tensors next to the journal and returns the SHA-256. Throws NotFinite when one of them is not
 * finite.
 */
internal fun writeResult(
    journal: Journal,
    tensors: Map<String, HeapTensor>,
): String {
    for ((name, tensor) in tensors) {
        if (tensor.values.any { it.isNaN() || it.isInfinite() }) {
            throw ChainFedException.NotFinite("The result for $name is not finite; lower the learning rate.")
        }
    }
    return writeTensors(journal.path(TENSORS), tensors)
}

/** The file with a result's tensors. Throws BadBundle when it is not what was written. */
internal fun resultFile(
    journal: Journal,
    sha256: String,
): File {
    val file = journal.path(TENSORS)
    if (!file.isFile || sha256Of(file) != sha256) {
        throw ChainFedException.BadBundle("A result was changed after it was written; delete the device's data.")
    }
    return file
}

/** Journals that the work is done and what came out. */
internal fun recordOutcome(
    journal: Journal,
    outcome: Outcome,
): Unit = journal.append("outcome", JsonList(listOf(JsonString(kindOf(outcome)), fieldsOf(outcome))))

/** The outcome, when the work is done. */
internal fun findOutcome(journal: Journal): Outcome? {
    val (kind, value) = (journal.find("outcome").firstOrNull() as JsonList? ?: return null).values
    val fields = value as JsonObject
    return when ((kind as JsonString).value) {
        PROFILE ->
            Outcome.Profile(
                numExamples = fields.long("num_examples"),
                scores = fields.member("scores").numbers(),
                tensorsSha256 = fields.text("tensors_sha256"),
            )

        UPDATE ->
            Outcome.Update(
                numExamples = fields.long("num_examples"),
                numSteps = fields.long("num_steps"),
                loss = fields.real("loss"),
                localLoss = fields.real("local_loss"),
                globalLoss = fields.real("global_loss"),
                accuracy = fields.real("accuracy"),
                tensorsSha256 = fields.text("tensors_sha256"),
            )

        else -> Outcome.Evaluation(fields.long("num_examples"), fields.long("num_correct"), fields.real("loss_sum"))
    }
}

private fun kindOf(outcome: Outcome): String =
    when (outcome) {
        is Outcome.Profile -> PROFILE
        is Outcome.Update -> UPDATE
        is Outcome.Evaluation -> EVALUATION
    }

private fun fieldsOf(outcome: Outcome): JsonObject =
    when (outcome) {
        is Outcome.Profile ->
            JsonObject.of(
                "num_examples" to JsonNumber.of(outcome.numExamples),
                "scores" to jsonNumbers(outcome.scores),
                "tensors_sha256" to JsonString(outcome.tensorsSha256),
            )

        is Outcome.Update ->
            JsonObject.of(
                "num_examples" to JsonNumber.of(outcome.numExamples),
                "num_steps" to JsonNumber.of(outcome.numSteps),
                "loss" to JsonNumber.of(outcome.loss),
                "local_loss" to JsonNumber.of(outcome.localLoss),
                "global_loss" to JsonNumber.of(outcome.globalLoss),
                "accuracy" to JsonNumber.of(outcome.accuracy),
                "tensors_sha256" to JsonString(outcome.tensorsSha256),
            )

        is Outcome.Evaluation ->
            JsonObject.of(
                "num_examples" to JsonNumber.of(outcome.numExamples),
                "num_correct" to JsonNumber.of(outcome.numCorrect),
                "loss_sum" to JsonNumber.of(outcome.lossSum),
            )
    }

private fun JsonObject.long(key: String): Long = member(key).whole()

private fun JsonObject.real(key: String): Double = member(key).number()

private fun JsonObject.text(key: String): String = (member(key) as JsonString).value

private fun JsonObject.member(key: String): JsonValue = members.getValue(key)

private const val TENSORS = "tensors"
private const val PROFILE = "profile"
private const val UPDATE = "update"
private const val EVALUATION = "evaluation"
