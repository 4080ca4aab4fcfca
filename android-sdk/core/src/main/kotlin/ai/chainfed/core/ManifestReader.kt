package ai.chainfed.core

import ai.chainfed.json.JsonBoolean
import ai.chainfed.json.JsonException
import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNull
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.JsonValue
import ai.chainfed.json.readJson
import ai.chainfed.json.shown

/**
 * The manifest in [data], read as strictly as `docs/bundle.md` asks.
 *
 * @throws ChainFedException.BadBundle naming [where] when it is damaged, contradicts itself, names a file outside the
 * bundle or is of a newer format version.
 */
internal fun readManifest(
    data: ByteArray,
    where: String,
): Manifest {
    if (data.size > MAX_MANIFEST_BYTES) refuse(where, "it has more than $MAX_MANIFEST_BYTES bytes")
    val root =
        try {
            readJson(data)
        } catch (error: JsonException) {
            refuse(where, error.reason)
        }
    if (root !is JsonObject || (root["format"] as? JsonString)?.value != "chainfed-bundle") {
        refuse(where, "it is no ChainFed manifest")
    }
    val version = (root["format_version"] as? JsonNumber)?.asLong ?: 0
    if (version !in 1..Manifest.FORMAT_VERSION) {
        val shown = if (version > 0) version else "unknown"
        throw ChainFedException.BadBundle(
            "$where has bundle format version $shown, but this ChainFed reads up to ${Manifest.FORMAT_VERSION}; " +
                "install a newer ChainFed or export the bundle again.",
        )
    }
    return ManifestReader(Fields(root, where, "")).read()
}

private const val MAX_MANIFEST_BYTES = 10_000_000
private const val MAX_LAYERS = 10_000L
private const val MAX_PATH_LENGTH = 200
private const val MAX_DIMENSIONS = 8
private const val MAX_ELEMENTS = 1L shl 60
private const val MAX_INT = Int.MAX_VALUE.toLong()
private val PATH = Regex("[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
private val SHA256 = Regex("[0-9a-f]{64}")
private val WINDOW_SIZE = Regex("[1-9][0-9]{0,4}")

private fun refuse(
    where: String,
    reason: String,
): Nothing = throw ChainFedException.BadBundle("$where cannot be used: $reason; export the bundle again.")

/** The members of an object, and where it stands. */
private class Fields(
    private val value: JsonObject,
    val where: String,
    private val place: String,
) {
    val keys: Set<String> get() = value.members.keys

    fun wrong(
        key: String,
        reason: String,
    ): Nothing = refuse(where, "field ${shown(place + key)} $reason")

    private fun <T : JsonValue> typed(
        key: String,
        type: Class<T>,
        what: String,
    ): T {
        val found = value[key] ?: wrong(key, "is missing")
        if (!type.isInstance(found)) wrong(key, "is no $what")
        return type.cast(found)!!
    }

    fun has(key: String): Boolean = value[key] != null && value[key] != JsonNull

    fun child(key: String): Fields = Fields(typed(key, JsonObject::class.java, "object"), where, "$place$key.")

    fun children(key: String): List<Fields> =
        typed(key, JsonList::class.java, "list").values.mapIndexed { index, item ->
            Fields(item as? JsonObject ?: wrong("$key.$index", "is no object"), where, "$place$key.$index.")
        }

    fun text(key: String): String = typed(key, JsonString::class.java, "text").value

    fun flag(key: String): Boolean = typed(key, JsonBoolean::class.java, "true or false").value

    fun oneOf(
        key: String,
        vararg known: String,
    ): String = text(key).also { if (it !in known) wrong(key, "is ${shown(it)}, which this ChainFed does not know") }

    fun whole(
        key: String,
        range: LongRange,
    ): Long = checkedWhole(key, typed(key, JsonNumber::class.java, "number"), range)

    private fun checkedWhole(
        key: String,
        number: JsonNumber,
        range: LongRange,
    ): Long {
        val found = number.asLong ?: wrong(key, "is no whole number")
        if (found !in range) wrong(key, "is $found, which is outside ${range.first} to ${range.last}")
        return found
    }

    fun wholes(
        key: String,
        range: LongRange,
        most: Int,
    ): List<Long> {
        val items = typed(key, JsonList::class.java, "list").values
        if (items.size > most) wrong(key, "has more than $most entries")
        return items.map { checkedWhole(key, it as? JsonNumber ?: wrong(key, "holds what is no number"), range) }
    }

    fun real(
        key: String,
        fits: (Double) -> Boolean = { true },
    ): Double {
        val found = typed(key, JsonNumber::class.java, "number").asDouble
        if (found == null || found.isInfinite() || !fits(found)) wrong(key, "is outside its bounds")
        return found
    }

    fun names(key: String): List<String> {
        val items = typed(key, JsonList::class.java, "list").values
        val found = items.map { (it as? JsonString)?.value ?: wrong(key, "holds what is no text") }
        return distinct(key, found)
    }

    fun distinct(
        key: String,
        names: List<String>,
    ): List<String> {
        val seen = HashSet<String>()
        names.find { !seen.add(it) }?.let { wrong(key, "names ${shown(it)} more than once") }
        return names
    }
}

private class ManifestReader(
    private val root: Fields,
) {
    fun read(): Manifest {
        root.child("created_by").let { packages -> packages.keys.forEach { packages.text(it) } }
        checkOptimizer(root.child("optimizer"))
        checkDefaults(root.child("defaults"))
        val shapes = root.child("shapes")
        val manifest =
            Manifest(
                model = model(root.child("model")),
                task = task(root.child("task")),
                padTokenId = root.child("tokenizer").whole("pad_token_id", 0..Long.MAX_VALUE),
                batchSize = shapes.whole("batch_size", 1..MAX_INT).toInt(),
                seqLen = shapes.whole("seq_len", 1..MAX_INT).toInt(),
                bottleneck = root.child("adapter").whole("bottleneck", 1..MAX_INT).toInt(),
                programs = root.child("programs").let { all -> all.keys.associateWith { program(all.child(it)) } },
                windows = windows(root.child("windows")),
                prefix = memoryPlan(root.child("prefix")),
                files = files(root.child("files")),
            )
        checkWhole(manifest)
        return manifest
    }

    private fun model(fields: Fields): ModelFacts {
        fields.text("family")
        fields.whole("num_parameters", 1..Long.MAX_VALUE)
        fields.names("embedding_tensors")
        fields.names("layer_tensors")
        if ("dtype" in fields.keys) fields.oneOf("dtype", "f32", "f16", "int8", "int4")
        val head = if (fields.has("language_head")) fields.child("language_head") else null
        return ModelFacts(
            numLayers = fields.whole("num_layers", 1..MAX_LAYERS).toInt(),
            hiddenSize = fields.whole("hidden_size", 1..MAX_INT).toInt(),
            vocabSize = fields.whole("vocab_size", 1..MAX_INT).toInt(),
            outputTensors = if ("output_tensors" in fields.keys) fields.names("output_tensors") else emptyList(),
            languageHead = head?.let { LanguageHead(it.text("file"), it.text("tensor")) },
        )
    }

    private fun task(fields: Fields): TaskFacts {
        val kind = fields.oneOf("kind", "classification", "language_modelling")
        val labels = if ("labels" in fields.keys) fields.names("labels") else emptyList()
        val pooled = fields.has("pooling")
        if (pooled) fields.oneOf("pooling", "mean", "cls", "last")
        val mostTargets =
            if ("max_target_tokens" in fields.keys) fields.whole("max_target_tokens", 0..Long.MAX_VALUE) else 0
        if (kind == "classification" && (labels.size < 2 || !pooled)) {
            fields.wrong("labels", "are fewer than two, or pooling is missing, which a classifier needs")
        }
        if (kind == "language_modelling" && (labels.isNotEmpty() || mostTargets < 1)) {
            fields.wrong("labels", "are there, or no target a row, which does not suit a language model")
        }
        return TaskFacts(
            kind = if (kind == "classification") TaskKind.CLASSIFICATION else TaskKind.LANGUAGE_MODELLING,
            labels = labels,
            maxTargetTokens = minOf(mostTargets, MAX_INT).toInt(),
            packing = "packing" in fields.keys && fields.flag("packing"),
            chat = if (fields.has("chat")) chat(fields.child("chat")) else null,
        )
    }

    private fun chat(fields: Fields): Chat {
        val between = fields.child("between")
        return Chat(
            between = between.keys.associateWith { between.text(it) },
            endOfTurn = fields.text("end_of_turn"),
            strip = fields.flag("strip"),
            specialTokens = fields.flag("special_tokens"),
        )
    }

    private fun checkOptimizer(fields: Fields) {
        fields.oneOf("name", "sgd", "adamw")
        for (key in listOf("beta1", "beta2", "eps", "weight_decay")) fields.real(key)
        fields.real("max_grad_norm") { it > 0 }
    }

    private fun checkDefaults(fields: Fields) {
        for (key in listOf("adapter_lr", "head_lr")) fields.real(key) { it > 0 }
        for (key in listOf("final_head_lr", "global_loss_weight")) fields.real(key) { it >= 0 }
        fields.oneOf("global_branch_statistics", "window_end", "last_layer")
        fields.real("foat_threshold") { it in 0.0..1.0 }
        fields.whole("foat_examples", 2..Long.MAX_VALUE)
        fields.whole("warmup_rounds", 0..Long.MAX_VALUE)
        fields.whole("local_epochs", 1..Long.MAX_VALUE)
    }

    private fun program(fields: Fields): ProgramEntry {
        fields.whole("arena_bytes", 0..Long.MAX_VALUE)
        return ProgramEntry(fields.text("file"), tensors(fields, "inputs"), tensors(fields, "outputs"))
    }

    private fun tensors(
        fields: Fields,
        key: String,
    ): List<TensorSpec> {
        val specs =
            fields.children(key).map { entry ->
                val shape = entry.wholes("shape", 0..MAX_INT, MAX_DIMENSIONS)
                if (!isAddressable(shape)) entry.wrong("shape", "has too large a product")
                val type = entry.text("dtype")
                TensorSpec(
                    entry.text("name"),
                    shape.map { it.toInt() },
                    TensorType.ofManifest(type) ?: entry.wrong("dtype", "is ${shown(type)}, which is unknown"),
                )
            }
        fields.distinct(key, specs.map { it.name })
        return specs
    }

    private fun isAddressable(shape: List<Long>): Boolean {
        var product = 1L
        for (extent in shape) {
            if (extent > 1 && product > (MAX_ELEMENTS - 1) / extent) return false
            product *= maxOf(extent, 1)
        }
        return true
    }

    private fun windows(fields: Fields): Map<Int, MemoryPlan> {
        if (fields.keys.isEmpty()) root.wrong("windows", "is empty")
        return fields.keys.associate { key ->
            if (!WINDOW_SIZE.matches(key) || key.toInt() > MAX_LAYERS) fields.wrong(key, "is no window size")
            key.toInt() to memoryPlan(fields.child(key))
        }
    }

    private fun memoryPlan(fields: Fields): MemoryPlan {
        for (key in listOf("arena_bytes", "workspace_bytes", "optimizer_bytes", "io_bytes")) {
            fields.whole(key, 0..Long.MAX_VALUE)
        }
        return MemoryPlan(
            anonymousBytes = fields.whole("anonymous_bytes", 0..Long.MAX_VALUE),
            fileBytes = fields.whole("file_bytes", 0..Long.MAX_VALUE),
        )
    }

    private fun files(fields: Fields): Map<String, FileEntry> =
        fields.keys.associateWith { path ->
            if (path.length > MAX_PATH_LENGTH || !PATH.matches(path)) {
                throw ChainFedException.BadBundle(
                    "${root.where} names a file outside the bundle (${shown(path)}); do not use this bundle.",
                )
            }
            val entry = fields.child(path)
            val sha256 = entry.text("sha256")
            if (!SHA256.matches(sha256)) entry.wrong("sha256", "is no SHA-256")
            FileEntry(entry.whole("bytes", 0..Long.MAX_VALUE), sha256)
        }

    private fun checkWhole(manifest: Manifest) {
        val layers = manifest.model.numLayers
        val largest = manifest.windows.keys.maxOf { it }
        if (largest > layers) {
            refuse(root.where, "it has a window of $largest layers, but the model has $layers")
        }
        if (manifest.padTokenId >= manifest.model.vocabSize) {
            refuse(root.where, "the padding token ${manifest.padTokenId} is outside the vocabulary")
        }
        val needed = ArrayList(manifest.programs.values.map { it.file })
        needed += Manifest.EMBEDDINGS_FILE
        (0 until layers).mapTo(needed) { Manifest.layerFile(it) }
        if (manifest.model.outputTensors.isNotEmpty()) needed += Manifest.OUTPUT_FILE
        manifest.model.languageHead?.let { needed += it.file }
        needed.find { it !in manifest.files }?.let {
            refuse(root.where, "it needs the file ${shown(it)}, which is not among its files")
        }
    }
}
