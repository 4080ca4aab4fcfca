package ai.chainfed.core

import java.io.Closeable
import java.io.File
import java.nio.FloatBuffer

/** Loads a bundle's programs. */
internal interface ProgramRuntime {
    /** Loads what the process needs before its first program, so that no assignment is charged for it. */
    fun prepare(): Unit = Unit

    /**
     * Loads the program in [file], which [entry] describes and [name] names.
     *
     * @throws ChainFedException.BadBundle when it is no program, or not the one that [entry] describes.
     */
    fun load(
        file: File,
        entry: ProgramEntry,
        name: String,
    ): Program
}

/** A loaded program. For one thread at a time. */
internal interface Program : Closeable {
    /**
     * Runs the program once. [inputs] has exactly the manifest's names, with its shapes and types. What comes back lies
     * in the program's arena until the next call or [close].
     *
     * @throws ChainFedException.BadBundle when an input is missing, unknown or of another shape or type, or the program
     * fails.
     */
    fun run(inputs: Map<String, TensorView>): ProgramOutputs
}

/** What a program gave, float32, by name. */
internal class ProgramOutputs(
    private val byName: Map<String, FloatBuffer>,
) {
    /** A new view of an output, at its beginning. */
    fun floats(name: String): FloatBuffer = byName.getValue(name).duplicate().apply { clear() }

    /** A scalar output. */
    fun scalar(name: String): Double = byName.getValue(name).get(0).toDouble()
}

/** The inputs in the order of [specs]. Throws BadBundle, naming [what], when they do not fit. */
internal fun arrange(
    inputs: Map<String, TensorView>,
    specs: List<TensorSpec>,
    what: String,
): List<TensorView> {
    if (inputs.size != specs.size) {
        val unknown = inputs.keys - specs.map { it.name }.toSet()
        val missing = specs.map { it.name } - inputs.keys
        throw ChainFedException.BadBundle(
            "$what: inputs missing: ${missing.take(MOST_SHOWN)}; unknown: ${unknown.take(MOST_SHOWN)}; " +
                "the bundle was made for another model.",
        )
    }
    return specs.map { spec ->
        val tensor =
            inputs[spec.name]
                ?: throw ChainFedException.BadBundle(
                    "$what: input ${spec.name} is missing; the bundle was made for another model.",
                )
        if (tensor.shape != spec.shape || tensor.type != spec.type) {
            throw ChainFedException.BadBundle(
                "$what: input ${spec.name} is ${tensor.type.manifestName} ${tensor.shape}, the program takes " +
                    "${spec.type.manifestName} ${spec.shape}; weights and programs do not belong together.",
            )
        }
        tensor
    }
}

private const val MOST_SHOWN = 4
