package ai.chainfed.core

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer

/**
 * XNNPACK's kernels may read this far past a tensor's end; past the end of a mapping that would kill the process.
 */
internal const val GUARD_BYTES: Int = 128

/** A safetensors file whose tensors are used where they lie: the system pages them in and out. */
internal class Shard(
    file: File,
    scope: Mappings.Scope,
    what: String = file.name,
) {
    /** Views of the file, in the order of its header. They hold the mapping. */
    val tensors: Map<String, TensorView>

    init {
        tensors =
            try {
                RandomAccessFile(file, "r").use { opened ->
                    val layout = readTensorLayout(opened.channel)
                    if (opened.length() > Int.MAX_VALUE) {
                        throw ChainFedException.BadBundle(
                            "$what has more than 2 GiB, which Android cannot map; export a smaller model.",
                        )
                    }
                    val mapped = scope.read(opened.channel)
                    layout.mapValues { (name, place) -> view(mapped, place, "$what: tensor $name") }
                }
            } catch (error: DamagedTensors) {
                throw ChainFedException.BadBundle(
                    "$what is no safetensors file: ${error.reason}; fetch or export it again.",
                    error,
                )
            } catch (error: IOException) {
                throw ChainFedException.BadBundle("$what cannot be read; fetch the bundle again.", error)
            }
    }

    private fun view(
        mapped: ByteBuffer,
        place: TensorRange,
        what: String,
    ): TensorView {
        val type =
            TensorType.ofFile(place.typeName) ?: throw ChainFedException.BadBundle(
                "$what is ${place.typeName}, but programs take ${TensorType.values().joinToString { it.fileName }}; " +
                    "export the bundle again.",
            )
        val start = place.offset.toInt()
        val count = place.numBytes.toInt()
        val part = slice(mapped, start, count)
        val tensor = TensorView(part, place.shape.map { it.toInt() }, type)
        val mappedBytes = (mapped.capacity() + PAGE_BYTES - 1L) / PAGE_BYTES * PAGE_BYTES
        if (start + count.toLong() + GUARD_BYTES <= mappedBytes && start % type.bytes == 0) return tensor
        return TensorView.allocate(tensor.shape, type).also { it.whole().put(tensor.whole()) }
    }

    private companion object {
        /** The smallest page of any Android device. */
        const val PAGE_BYTES = 4096
    }
}
