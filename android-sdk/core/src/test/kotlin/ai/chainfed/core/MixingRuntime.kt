package ai.chainfed.core

import java.io.File
import java.nio.FloatBuffer
import kotlin.math.sin

/**
 * Programs of which every output depends on every element of every input, by the signatures of the manifest: whatever
 * is fed in another place, order or generation comes out as other bytes. Their outputs lie in an arena, as ExecuTorch's
 * do.
 */
internal class MixingRuntime : ProgramRuntime {
    /** The names of the programs that ran. */
    val runs = ArrayList<String>()

    /** Called before a program runs; throws to be a process that is killed there. */
    var beforeRun: () -> Unit = {}

    override fun load(
        file: File,
        entry: ProgramEntry,
        name: String,
    ): Program = MixingProgram(entry, name)

    private inner class MixingProgram(
        private val entry: ProgramEntry,
        private val name: String,
    ) : Program {
        private val arena = entry.outputs.associate { it.name to FloatBuffer.allocate(it.numElements) }

        override fun run(inputs: Map<String, TensorView>): ProgramOutputs {
            beforeRun()
            runs += name.removePrefix("programs/").removeSuffix(".pte")
            val arguments = arrange(inputs, entry.inputs, name)
            var sum = 0.0
            arguments.forEachIndexed { number, tensor ->
                valuesOf(tensor).forEachIndexed { index, value -> sum += value * sin(1.0 + number + 0.37 * index) }
            }
            var place = 0
            for (values in arena.values) {
                for (index in 0 until values.capacity()) values.put(index, sin(sum + 0.61 * place++).toFloat())
            }
            return ProgramOutputs(arena)
        }

        override fun close() {
            for (values in arena.values) for (index in 0 until values.capacity()) values.put(index, Float.NaN)
        }
    }
}

/** The elements of a float32 or int64 tensor. */
internal fun valuesOf(tensor: TensorView): DoubleArray =
    if (tensor.type == TensorType.INT64) {
        val values = tensor.longs()
        DoubleArray(tensor.numElements) { values.get(it).toDouble() }
    } else {
        val values = tensor.floats()
        DoubleArray(tensor.numElements) { values.get(it).toDouble() }
    }
