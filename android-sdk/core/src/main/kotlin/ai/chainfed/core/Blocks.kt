package ai.chainfed.core

import java.io.Closeable

/** The programs of the frozen layers, one open at a time: one that serves all layers, or one for each of them. */
internal class Blocks(
    private val bundle: DeviceBundle,
) : Closeable {
    private var name = ""
    private var program: Program? = null

    /** The program of a layer, open until another one is asked for. */
    fun open(layer: Int): Program {
        val wanted = bundle.manifest.blockProgram(layer)
        program?.let { if (name == wanted) return it }
        close()
        return bundle.program(wanted).also {
            program = it
            name = wanted
        }
    }

    override fun close() {
        program?.close()
        program = null
    }
}
