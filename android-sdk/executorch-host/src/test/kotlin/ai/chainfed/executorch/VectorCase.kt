package ai.chainfed.executorch

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.readJson
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel

internal fun JsonObject.child(key: String): JsonObject = this[key] as JsonObject

internal fun JsonObject.children(key: String): List<JsonObject> =
    (this[key] as JsonList).values.map {
        it as JsonObject
    }

internal fun JsonObject.text(key: String): String = (this[key] as JsonString).value

internal fun JsonObject.number(key: String): Double = (this[key] as JsonNumber).asDouble!!

private fun JsonObject.longs(key: String): LongArray =
    (this[key] as JsonList).values.map { (it as JsonNumber).asLong!! }.toLongArray()

/** The tensors of a safetensors file, mapped, by name. */
internal fun readTensors(file: File): Map<String, Tensor> {
    val map =
        RandomAccessFile(file, "r").use { it.channel.map(FileChannel.MapMode.READ_ONLY, 0, it.length()) }
    val start = 8 + map.order(ByteOrder.LITTLE_ENDIAN).getLong(0).toInt()
    val header = readJson(ByteArray(start - 8).also { map.position(8).get(it) }) as JsonObject
    return (header.members - "__metadata__").mapValues { (_, entry) ->
        val (begin, end) = (entry as JsonObject).longs("data_offsets").map { start + it.toInt() }
        val data =
            map
                .duplicate()
                .position(begin)
                .limit(end)
                .slice()
                .order(ByteOrder.nativeOrder())
        when (val dtype = entry.text("dtype")) {
            "F32" -> Tensor.fromBlob(data.asFloatBuffer(), entry.longs("shape"))
            "I64" -> Tensor.fromBlob(data.asLongBuffer(), entry.longs("shape"))
            else -> error("$file: $dtype")
        }
    }
}

/** One case of tests/vectors/bundles, as the README there describes it. */
internal class VectorCase(
    private val bundle: File,
    private val index: JsonObject,
    private val case: JsonObject,
) {
    private val manifest = readJson(bundle.resolve("bundle/manifest.json").readBytes()) as JsonObject
    private val program = manifest.child("programs").child(case.text("program"))
    private val tensors = readTensors(bundle.resolve(case.text("tensors")))
    private val labels = (manifest.child("task")["labels"] as JsonList).values.size
    private val rows = case.number("rows").toInt()

    val name: String = "${bundle.name}/${case.text("name")}"
    val steps: Int = case.number("steps").toInt()
    val tolerance: Double = index.number("tolerance")
    val file: File = bundle.resolve("bundle").resolve(program.text("file"))

    /** The inputs of the first step, by name, mapped from their files. */
    fun inputs(): Map<String, Tensor> =
        named("input/") +
            case.child("weights").members.flatMap { (prefix, file) ->
                readTensors(bundle.resolve("bundle").resolve((file as JsonString).value)).map {
                    prefix + it.key to
                        it.value
                }
            }

    fun expected(step: Int): Map<String, Tensor> = named("expected/$step/")

    fun arguments(inputs: Map<String, Tensor>): Array<EValue> =
        program.children("inputs").map { EValue.from(inputs.getValue(it.text("name"))) }.toTypedArray()

    /** The outputs by name, in the program's order: views of the module's arena. */
    fun run(
        module: Module,
        inputs: Map<String, Tensor>,
    ): Map<String, Tensor> {
        val outputs = module.forward(*arguments(inputs))
        return program
            .children("outputs")
            .map { it.text("name") }
            .zip(outputs.map { it.toTensor() })
            .toMap()
    }

    /** The inputs of the next step: outputs take their own place, copied, since the arena is written over. */
    fun next(
        inputs: Map<String, Tensor>,
        outputs: Map<String, Tensor>,
    ): Map<String, Tensor> =
        inputs +
            outputs.filterKeys { it in inputs }.mapValues {
                Tensor.fromBlob(
                    it.value.dataAsFloatArray,
                    it.value.shape(),
                )
            }

    /** How many leading elements of an output count. */
    fun counted(
        name: String,
        tensor: Tensor,
    ): (Int) -> Boolean {
        val columns = (tensor.numel() / (tensor.shape().firstOrNull() ?: 1L)).toInt()
        return when {
            "head." in name -> { at -> at / columns < labels }
            name == "logits" -> { at -> at / columns < rows && (labels == 0 || at % columns < labels) }
            name == "h" || name == "features" -> { at -> at / columns < rows }
            else -> { _ -> true }
        }
    }

    private fun named(start: String): Map<String, Tensor> =
        tensors.filterKeys { it.startsWith(start) }.mapKeys { it.key.removePrefix(start) }

    override fun toString(): String = name

    companion object {
        fun all(): List<VectorCase> =
            References.vectors.resolve("bundles").listFiles()!!.sorted().flatMap { bundle ->
                val index = readJson(bundle.resolve("cases.json").readBytes()) as JsonObject
                index.children("cases").map { VectorCase(bundle, index, it) }
            }

        fun named(name: String): VectorCase = all().single { it.name == name }
    }
}

/** The bytes of float32 tensors, one behind the other. */
internal fun bytes(tensors: Collection<Tensor>): ByteArray {
    val all =
        ByteBuffer
            .allocate(
                tensors.sumOf { it.numel().toInt() * Float.SIZE_BYTES },
            ).order(ByteOrder.nativeOrder())
    val floats = all.asFloatBuffer()
    tensors.forEach { it.copyDataInto(floats) }
    return all.array()
}
