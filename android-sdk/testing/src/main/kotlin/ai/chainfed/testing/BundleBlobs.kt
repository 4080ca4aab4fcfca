package ai.chainfed.testing

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.readJson
import ai.chainfed.json.writeJson
import ai.chainfed.v1.BlobRef
import ai.chainfed.v1.NamedBlob
import ai.chainfed.v1.blobRef
import ai.chainfed.v1.namedBlob
import java.io.ByteArrayOutputStream
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest

/**
 * A bundle's files and the pieces of its initial model state, as a coordinator hands them out. Small bundles only:
 * everything is in memory.
 *
 * IllegalArgumentException when [folder] is no bundle.
 */
internal class BundleBlobs(
    folder: File,
) {
    private val blobs = HashMap<String, ByteArray>()

    val manifest: BlobRef
    val numLayers: Int

    /** Every file that the manifest names but the initial state. */
    val files: List<NamedBlob>

    /** "adapters.{i}", "heads.{i}" and "statistics", as `docs/bundle.md` cuts the state into pieces. */
    val state: List<NamedBlob>

    init {
        val manifestFile = File(folder, "manifest.json")
        require(manifestFile.isFile) { "$folder is no bundle: it has no manifest.json." }
        manifest = add(manifestFile.readBytes())
        val document = readJson(manifestFile.readBytes()) as JsonObject
        numLayers = ((document["model"] as JsonObject)["num_layers"] as JsonNumber).asLong!!.toInt()
        val names = (document["files"] as JsonObject).members.keys
        files = names.filter { it != STATE }.map { named(it, File(folder, it).readBytes()) }
        state = pieces(File(folder, STATE).readBytes()).map { (name, bytes) -> named(name, bytes) }
    }

    /** The bytes that have this SHA-256; null when there are none. */
    operator fun get(sha256: String): ByteArray? = blobs[sha256]

    private fun named(
        name: String,
        bytes: ByteArray,
    ): NamedBlob =
        namedBlob {
            this.name = name
            blob = add(bytes)
        }

    private fun add(bytes: ByteArray): BlobRef {
        val reference =
            blobRef {
                sha256 = sha256Of(bytes)
                sizeBytes = bytes.size.toLong()
            }
        blobs[reference.sha256] = bytes
        return reference
    }

    /** A safetensors file, cut by the names of its tensors. */
    private fun pieces(file: ByteArray): Map<String, ByteArray> {
        val headerBytes = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN).long.toInt()
        val data = Long.SIZE_BYTES + headerBytes
        val header = readJson(file.copyOfRange(Long.SIZE_BYTES, data)) as JsonObject
        return header.members.entries
            .filter { it.key != "__metadata__" }
            .groupBy { (name, _) ->
                if (name.startsWith("statistics.")) "statistics" else name.substringBeforeLast('.')
            }.mapValues { (_, tensors) ->
                encode(
                    tensors.map { (name, value) ->
                        val entry = value as JsonObject
                        val (begin, end) =
                            (entry["data_offsets"] as JsonList).values.map {
                                (it as JsonNumber)
                                    .asLong!!
                                    .toInt()
                            }
                        Tensor(name, entry, file.copyOfRange(data + begin, data + end))
                    },
                )
            }
    }

    private class Tensor(
        val name: String,
        val entry: JsonObject,
        val bytes: ByteArray,
    )

    private fun encode(tensors: List<Tensor>): ByteArray {
        var offset = 0L
        val header =
            JsonObject(
                tensors.sortedBy { it.name }.associate { tensor ->
                    val begin = offset
                    offset += tensor.bytes.size
                    tensor.name to
                        JsonObject.of(
                            "dtype" to tensor.entry["dtype"]!!,
                            "shape" to tensor.entry["shape"]!!,
                            "data_offsets" to JsonList(listOf(JsonNumber.of(begin), JsonNumber.of(offset))),
                        )
                },
            )
        val text = writeJson(header)
        val padded = text.padEnd((text.length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT).toByteArray()
        val written = ByteArrayOutputStream()
        val length = ByteBuffer.allocate(Long.SIZE_BYTES).order(ByteOrder.LITTLE_ENDIAN).putLong(padded.size.toLong())
        written.write(length.array())
        written.write(padded)
        tensors.sortedBy { it.name }.forEach { written.write(it.bytes) }
        return written.toByteArray()
    }

    private companion object {
        const val STATE = "adapters.safetensors"
        const val ALIGNMENT = 8
    }
}

/** SHA-256, 64 hexadecimal digits. */
internal fun sha256Of(bytes: ByteArray): String =
    MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }
