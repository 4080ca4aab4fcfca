package ai.chainfed.core

import java.io.File

/** The manifest, its SHA-256, and where the fetched files of an assignment lie. */
internal class DeviceBundle(
    val manifest: Manifest,
    val manifestSha256: String,
    private val files: Map<String, File>,
    private val runtime: ProgramRuntime,
) {
    /** Where a file lies. Throws BadBundle when the assignment did not bring it. */
    fun file(name: String): File =
        files[name] ?: throw ChainFedException.BadBundle(
            "The assignment does not bring $name, which it needs; export the bundle again.",
        )

    /** Loads a program. Throws BadBundle when the bundle has none of this name. */
    fun program(name: String): Program {
        val entry =
            manifest.programs[name] ?: throw ChainFedException.BadBundle(
                "The bundle has no program $name; export it again with what the run needs.",
            )
        return runtime.load(file(entry.file), entry, entry.file)
    }

    /** The embeddings' weights, as the inputs of `embed`. */
    fun embeddings(scope: Mappings.Scope): Map<String, TensorView> =
        shard(Manifest.EMBEDDINGS_FILE, scope).mapKeys { "embeddings.${it.key}" }

    /** A layer's weights, as the inputs of a block; none where the block's program holds them. */
    fun blockWeights(
        layer: Int,
        scope: Mappings.Scope,
    ): Map<String, TensorView> =
        if (manifest.blocksHoldWeights) {
            emptyMap()
        } else {
            shard(Manifest.layerFile(layer), scope).mapKeys { "layer.${it.key}" }
        }

    /** The weights of a window's layers, as its inputs. */
    fun windowWeights(
        firstLayer: Int,
        windowSize: Int,
        scope: Mappings.Scope,
    ): Map<String, TensorView> {
        val feed = HashMap<String, TensorView>()
        for (index in 0 until windowSize) {
            shard(Manifest.layerFile(firstLayer + index), scope).mapKeysTo(feed) { "window.$index.layer.${it.key}" }
        }
        return feed
    }

    /** What stands between a layer and a head, as inputs; empty for a model that has nothing there. */
    fun output(scope: Mappings.Scope): Map<String, TensorView> =
        if (manifest.model.outputTensors.isEmpty()) {
            emptyMap()
        } else {
            shard(Manifest.OUTPUT_FILE, scope).mapKeys { "output.${it.key}" }
        }

    /** A language model's head as the input `lm_head.weight`, and its scales. */
    fun languageHead(scope: Mappings.Scope): Map<String, TensorView> {
        val place =
            manifest.model.languageHead ?: throw ChainFedException.BadBundle(
                "The bundle says not where its language-model head lies; export it again.",
            )
        val found = shard(place.file, scope).filterKeys { it == place.tensor || it.startsWith("${place.tensor}.") }
        if (place.tensor !in found) {
            throw ChainFedException.BadBundle("The bundle lacks its language-model head; export it again.")
        }
        return found.mapKeys { "lm_head.weight" + it.key.removePrefix(place.tensor) }
    }

    /** The file that the pass through a layer reads most of. */
    fun passFile(layer: Int): File =
        if (manifest.blocksHoldWeights) {
            file(manifest.programs.getValue(manifest.blockProgram(layer)).file)
        } else {
            file(Manifest.layerFile(layer))
        }

    private fun shard(
        name: String,
        scope: Mappings.Scope,
    ): Map<String, TensorView> = Shard(file(name), scope, name).tensors
}
