package ai.chainfed.core

import java.io.Closeable
import java.io.File
import java.io.RandomAccessFile

/**
 * Two generations of what training carries from step to step (weights and optimiser state), in two mapped files: step t
 * reads generation t and writes t + 1 into the other file. So a process killed during step t finds generation t as it
 * was.
 */
internal class CarriedState(
    folder: File,
    name: String,
    entry: ProgramEntry,
    private val scope: Mappings.Scope,
) : Closeable {
    private val specs = carried(entry)
    private val generations =
        (0..1).map { number -> mapped(File(folder, "$name.$number"), specs.map { it.name to it.shape }, scope) }

    /** Views of the tensors that step [step] reads (0: the initial ones). */
    fun generation(step: Int): Map<String, TensorView> = generations[step % 2]

    /** Writes generation 0. What [initial] does not name (optimiser state) becomes zero. */
    fun fill(initial: Map<String, TensorView>) {
        for ((name, tensor) in generation(0)) {
            val target = tensor.floats()
            initial[name]?.let { target.put(it.floats()) }
            while (target.hasRemaining()) target.put(0f)
        }
    }

    /** Writes what step [step] gave as generation [step] + 1. */
    fun store(
        step: Int,
        outputs: ProgramOutputs,
    ) {
        for ((name, tensor) in generation(step + 1)) tensor.floats().put(outputs.floats(name))
    }

    override fun close(): Unit = scope.close()

    companion object {
        /** The tensors of a training program that are both input and output. */
        fun carried(entry: ProgramEntry): List<TensorSpec> {
            val outputs = entry.outputs.map { it.name }.toSet()
            return entry.inputs.filter { it.name in outputs }
        }
    }
}

/** float32 tensors one after the other in a file that is mapped for reading and writing; zeros where it is new. */
internal fun mapped(
    file: File,
    tensors: List<Pair<String, List<Int>>>,
    scope: Mappings.Scope,
): Map<String, TensorView> {
    val places = LinkedHashMap<String, TensorSpec>()
    val starts = ArrayList<Int>()
    var end = 0
    for ((name, shape) in tensors) {
        val spec = TensorSpec(name, shape, TensorType.FLOAT32)
        places[name] = spec
        starts += end
        end = Math.addExact(end, (spec.numBytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)
    }
    val total = end + GUARD_BYTES.toLong()
    val bytes =
        RandomAccessFile(file, "rw").use { opened ->
            opened.channel.reserve(total)
            scope.readWrite(opened.channel, total)
        }
    return places.values.withIndex().associate { (index, spec) ->
        spec.name to TensorView(slice(bytes, starts[index], spec.numBytes), spec.shape, spec.type)
    }
}

private const val ALIGNMENT = 64
