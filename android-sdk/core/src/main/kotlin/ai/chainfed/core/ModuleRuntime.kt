package ai.chainfed.core

import org.pytorch.executorch.EValue
import org.pytorch.executorch.ExecuTorchRuntime
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import java.io.File
import java.nio.FloatBuffer

/**
 * Programs on the ExecuTorch runtime of `org.pytorch:executorch-android`; [threads] of the process's one pool compute.
 */
internal class ModuleRuntime(
    private val threads: Int,
) : ProgramRuntime {
    override fun prepare() {
        ExecuTorchRuntime.getRegisteredBackends()
    }

    override fun load(
        file: File,
        entry: ProgramEntry,
        name: String,
    ): Program =
        try {
            // Mapped: by default the runtime would read the whole file into the process's own memory.
            ModuleProgram(Module.load(file.path, Module.LOAD_MODE_MMAP, threads), entry, name)
        } catch (error: ExecutorchRuntimeException) {
            throw notLoaded(name, error)
        } catch (error: IllegalArgumentException) {
            throw notLoaded(name, error)
        }

    private fun notLoaded(
        name: String,
        error: Exception,
    ) = ChainFedException.BadBundle(
        "$name is no program that ExecuTorch can load (${error.message}); export the bundle again.",
        error,
    )
}

private class ModuleProgram(
    private val module: Module,
    private val entry: ProgramEntry,
    private val name: String,
) : Program {
    override fun run(inputs: Map<String, TensorView>): ProgramOutputs {
        val arguments = arrange(inputs, entry.inputs, name).map { EValue.from(tensorOf(it)) }
        val outputs =
            try {
                module.forward(*arguments.toTypedArray())
            } catch (error: ExecutorchRuntimeException) {
                throw ChainFedException.BadBundle(
                    "$name failed while it ran (${error.message}); export the bundle again.",
                    error,
                )
            }
        if (outputs.size != entry.outputs.size) {
            throw ChainFedException.BadBundle(
                "$name gives ${outputs.size} outputs, the manifest names ${entry.outputs.size}: they do not belong " +
                    "together; export the bundle again.",
            )
        }
        return ProgramOutputs(
            entry.outputs.indices.associate { index ->
                entry.outputs[index].name to outputs[index].toTensor().getRawDataBuffer() as FloatBuffer
            },
        )
    }

    override fun close(): Unit = module.close()

    private fun tensorOf(view: TensorView): Tensor {
        val shape = LongArray(view.shape.size) { view.shape[it].toLong() }
        val bytes = view.whole()
        return when (view.type) {
            TensorType.FLOAT32 -> Tensor.fromBlob(bytes.asFloatBuffer(), shape)
            TensorType.FLOAT16 -> Tensor.fromBlob(bytes.asShortBuffer(), shape)
            TensorType.INT8 -> Tensor.fromBlob(bytes, shape)
            TensorType.INT64 -> Tensor.fromBlob(bytes.asLongBuffer(), shape)
        }
    }
}
