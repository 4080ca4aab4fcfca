package ai.chainfed.core

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonString

/**
 * What the steps of a training program gave: the carried tensors after the last one, and of each the measured outputs.
 */
internal class Trained(
    val tensors: Map<String, FloatArray>,
    val measured: List<List<Double>>,
)

/**
 * Runs a training program once a step, one journalled step after the other (Algorithm 1, line 8).
 *
 * [label] names these steps in the journal. [initial]: trainables at the start. [constant]: inputs that stay.
 * [batchFeed]: the inputs that depend on a step's rows. [measures]: the scalar outputs to keep.
 *
 * @throws ChainFedException.NotFinite when one of them is not finite.
 */
internal suspend fun runSteps(
    work: Work,
    label: String,
    program: Program,
    entry: ProgramEntry,
    initial: Map<String, TensorView>,
    steps: List<IntArray>,
    constant: Map<String, TensorView>,
    measures: List<String>,
    batchFeed: (IntArray) -> Map<String, TensorView>,
): Trained =
    CarriedState(work.journal.path("."), label, entry, work.mappings.Scope()).use { state ->
        val done = ArrayList(journalledSteps(work.journal, label))
        if (done.isEmpty()) state.fill(initial)
        for (number in done.size until steps.size) {
            val outputs = program.run(constant + state.generation(number) + batchFeed(steps[number]))
            val values = measures.map { outputs.scalar(it) }
            if (!values.all { it.isFinite() }) {
                throw ChainFedException.NotFinite(
                    "The loss of step ${number + 1} is not finite; lower the learning rate.",
                )
            }
            state.store(number, outputs)
            work.journal.append("step", JsonList(listOf(JsonString(label), jsonNumbers(values))))
            done += values
            work.checkpoint("")
        }
        val last = state.generation(steps.size)
        Trained(last.mapValues { (_, tensor) -> FloatArray(tensor.numElements).also { tensor.floats().get(it) } }, done)
    }

private fun journalledSteps(
    journal: Journal,
    label: String,
): List<List<Double>> =
    journal.find("step").mapNotNull { record ->
        val (name, values) = (record as JsonList).values
        values.numbers().takeIf { (name as JsonString).value == label }
    }

/**
 * After minus before of the tensors that [names] maps from a program's inputs to the model state's names. The rows of a
 * head that stand for no label stay behind.
 */
internal fun changes(
    trained: Trained,
    before: ModelState,
    names: Map<String, String>,
): Map<String, HeapTensor> =
    names.entries.associate { (source, target) ->
        val tensor = before.take(target)
        val old = tensor.floats()
        val after = trained.tensors.getValue(source)
        target to HeapTensor(tensor.shape, FloatArray(tensor.numElements) { after[it] - old.get(it) })
    }
