package ai.chainfed.core

/**
 * Element types of a bundle's tensors.
 *
 * @property manifestName as manifests have it.
 * @property fileName as safetensors headers have it.
 */
internal enum class TensorType(
    val manifestName: String,
    val fileName: String,
    val bytes: Int,
) {
    FLOAT32("float32", "F32", 4),
    FLOAT16("float16", "F16", 2),
    INT8("int8", "I8", 1),
    INT64("int64", "I64", 8),
    ;

    companion object {
        fun ofManifest(name: String): TensorType? = values().find { it.manifestName == name }

        fun ofFile(name: String): TensorType? = values().find { it.fileName == name }
    }
}

/** An input or output of a program. */
internal data class TensorSpec(
    val name: String,
    val shape: List<Int>,
    val type: TensorType,
) {
    val numElements: Int get() = shape.fold(1) { product, extent -> Math.multiplyExact(product, extent) }

    val numBytes: Int get() = Math.multiplyExact(numElements, type.bytes)
}
