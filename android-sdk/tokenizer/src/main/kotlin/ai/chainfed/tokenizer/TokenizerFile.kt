package ai.chainfed.tokenizer

import ai.chainfed.json.JsonException
import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNull
import ai.chainfed.json.JsonObject
import ai.chainfed.json.readJson
import ai.chainfed.json.shown

/** A `tokenizer.json` to a tokenizer; what is not known is refused by name. */
internal object TokenizerFile {
    private val KEYS =
        setOf("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer") +
            setOf("post_processor", "decoder", "model")

    fun read(data: ByteArray): Tokenizer {
        val document =
            try {
                readJson(data)
            } catch (error: JsonException) {
                throw TokenizerException.damaged(error.reason, error)
            }
        if (document !is JsonObject) throw TokenizerException.damaged("it is no JSON object")
        val file = Component(document, "the file")
        file.refuseOthers(KEYS)
        val version = file.text("version")
        if (version != "1.0") throw TokenizerException.unsupported("version ${shown(version)}")
        return tokenizer(file)
    }

    private fun tokenizer(file: Component): Tokenizer {
        val normalizer = file.optionalPart("normalizer", "normalizer")?.let(NormalizerReader::read)
        val preTokenizer = file.optionalPart("pre_tokenizer", "pre-tokenizer")?.let(PreTokenizerReader::read)
        val model = ModelReader.read(file.part("model", "model"))
        val postProcessor = file.optionalPart("post_processor", "post-processor")?.let(PostProcessorReader::read)
        val added = addedTokens(file, model)
        val trims = postProcessor != null && PostProcessorReader.trims(postProcessor)
        if (trims && model is UnigramModel) {
            throw TokenizerException.unsupported("trimmed offsets of a unigram model")
        }
        val spaces = if (trims) spaces(model) else emptyMap()
        return Tokenizer(AddedTokens(added, normalizer), preTokenizer, CachedModel(model), postProcessor, spaces)
    }

    /** Tokens that the vocabulary has keep its id; the others are numbered on from its end, as the library does. */
    private fun addedTokens(
        file: Component,
        model: Model,
    ): Map<Int, AddedToken> {
        val ids = HashMap<String, Int>()
        val tokens = LinkedHashMap<Int, AddedToken>()
        var next = model.vocabularySize
        if (file["added_tokens"] == null || file["added_tokens"] is JsonNull) return tokens
        for (value in file.list("added_tokens")) {
            val entry = Component(value as? JsonObject ?: throw file.wrong("added_tokens"), "an added token")
            val token = addedToken(entry)
            if (token.content.isEmpty()) continue
            val id = ids[token.content] ?: model.id(token.content) ?: next++
            ids[token.content] = id
            tokens[id] = token
        }
        return tokens
    }

    private fun addedToken(entry: Component): AddedToken {
        entry.refuseOthers(setOf("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"))
        return AddedToken(
            entry.text("content"),
            entry.flag("single_word"),
            entry.flag("lstrip"),
            entry.flag("rstrip"),
            entry.flag("normalized"),
            entry.flag("special"),
        )
    }

    private fun spaces(model: Model): Map<Int, Int> {
        val spaces = HashMap<Int, Int>()
        for ((token, id) in model.vocabulary()) {
            val edges = Spaces.of(token)
            if (edges != 0) spaces[id] = edges
        }
        return spaces
    }
}

/** What a file says of a Unicode normal form. */
internal fun normalForm(name: String): java.text.Normalizer.Form? =
    java.text.Normalizer.Form
        .values()
        .firstOrNull { it.name == name }

/** A list in a file whose entries are all objects. */
internal fun Component.parts(
    key: String,
    kind: String,
): List<Component> = list(key).map { Component.of(it, kind, this, key) }

/** Normalizers by their type. */
internal object NormalizerReader {
    fun read(part: Component): Normalizer =
        when (part.type) {
            "BertNormalizer" -> {
                bert(part)
            }

            "Lowercase" -> {
                part.only().let { Lowercase }
            }

            "StripAccents" -> {
                part.only().let { Filter(::isMark) }
            }

            "Nmt" -> {
                part.only().let { NMT }
            }

            "ByteLevel" -> {
                part.only().let { Normalizer { ByteAlphabet.written(it) } }
            }

            "NFC", "NFD", "NFKC", "NFKD" -> {
                part.only().let { UnicodeNormalization(normalForm(part.type)!!) }
            }

            "Strip" -> {
                part
                    .only(
                        "strip_left",
                        "strip_right",
                    ).let { Strip(it.flag("strip_left"), it.flag("strip_right")) }
            }

            "Prepend" -> {
                Prepend(part.only("prepend").text("prepend"))
            }

            "Replace" -> {
                part.only("pattern", "content").let { Replace(it.pattern("pattern"), it.text("content")) }
            }

            "Precompiled" -> {
                part
                    .only(
                        "precompiled_charsmap",
                    ).let { PrecompiledNormalizer(it.base64("precompiled_charsmap")) }
            }

            "Sequence" -> {
                NormalizerSequence(part.only("normalizers").parts("normalizers", "normalizer").map(::read))
            }

            else -> {
                throw part.unknownType()
            }
        }

    private fun bert(part: Component): Normalizer {
        part.only("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
        val lowercase = part.flag("lowercase")
        return BertNormalizer(
            part.flag("clean_text"),
            part.flag("handle_chinese_chars"),
            if (part.has("strip_accents")) part.flag("strip_accents") else lowercase,
            lowercase,
        )
    }
}

/** Pre-tokenizers by their type. */
internal object PreTokenizerReader {
    fun read(part: Component): PreTokenizer =
        when (part.type) {
            "BertPreTokenizer" -> {
                part.only().let { Split.bert() }
            }

            "Whitespace" -> {
                part.only().let { Split.words() }
            }

            "WhitespaceSplit" -> {
                part.only().let { Split.whitespace() }
            }

            "Digits" -> {
                Split.digits(part.only("individual_digits").flag("individual_digits"))
            }

            "Punctuation" -> {
                Split.punctuation(behavior(part.only("behavior"), SplitBehavior.ISOLATED))
            }

            "ByteLevel" -> {
                byteLevel(part)
            }

            "Metaspace" -> {
                metaspace(part)
            }

            "Split" -> {
                split(part)
            }

            "Sequence" -> {
                PreTokenizerSequence(part.only("pretokenizers").parts("pretokenizers", "pre-tokenizer").map(::read))
            }

            else -> {
                throw part.unknownType()
            }
        }

    private fun byteLevel(part: Component): PreTokenizer {
        part.only("add_prefix_space", "trim_offsets", "use_regex")
        return ByteLevelPreTokenizer(part.flag("add_prefix_space"), !part.has("use_regex") || part.flag("use_regex"))
    }

    private fun metaspace(part: Component): PreTokenizer {
        part.only("replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep")
        val replacement = codePoints(part.text("replacement")).singleOrNull() ?: throw part.wrong("replacement")
        val never = part.has("add_prefix_space") && !part.flag("add_prefix_space")
        val word =
            if (part.has("prepend_scheme")) {
                part.text("prepend_scheme")
            } else if (never) {
                "never"
            } else {
                "always"
            }
        val scheme =
            PrependScheme.values().firstOrNull { it.word == word } ?: throw part.unknownValue("prepend_scheme", word)
        if (never && scheme != PrependScheme.NEVER) throw part.wrong("add_prefix_space")
        return Metaspace(replacement, scheme, !part.has("split") || part.flag("split"))
    }

    private fun split(part: Component): PreTokenizer {
        part.only("pattern", "behavior", "invert")
        val pattern = part.pattern("pattern")
        return Split(if (part.flag("invert")) InvertedPattern(pattern) else pattern, behavior(part, null))
    }

    private fun behavior(
        part: Component,
        default: SplitBehavior?,
    ): SplitBehavior {
        if (default != null && !part.has("behavior")) return default
        val word = part.text("behavior")
        return SplitBehavior.values().firstOrNull { it.word == word } ?: throw part.unknownValue("behavior", word)
    }
}

/** Post-processors by their type, as far as they concern a text that stands alone. */
internal object PostProcessorReader {
    fun read(part: Component): PostProcessor =
        when (part.type) {
            "BertProcessing" -> part.only("sep", "cls").let(::surrounding)
            "RobertaProcessing" -> roberta(part)
            "ByteLevel" -> byteLevel(part)
            "TemplateProcessing" -> template(part)
            "Sequence" -> sequence(part)
            else -> throw part.unknownType()
        }

    /** Whether the places of tokens are trimmed, for which their spaces have to be known. */
    fun trims(processor: PostProcessor): Boolean =
        processor is TrimmedOffsets || processor is PostProcessorSequence && processor.any(::trims)

    private fun surrounding(part: Component): PostProcessor =
        Surrounding(intArrayOf(namedId(part, "cls")), intArrayOf(namedId(part, "sep")))

    private fun namedId(
        part: Component,
        key: String,
    ): Int = part.list(key).takeIf { it.size == 2 }?.let { part.id(it[1], key) } ?: throw part.wrong(key)

    private fun roberta(part: Component): PostProcessor {
        part.only("sep", "cls", "trim_offsets", "add_prefix_space")
        val addsSpace = part.flag("add_prefix_space")
        val surrounding = surrounding(part)
        return if (part.flag("trim_offsets")) {
            PostProcessorSequence(listOf(TrimmedOffsets(addsSpace), surrounding))
        } else {
            surrounding
        }
    }

    private fun byteLevel(part: Component): PostProcessor {
        part.only("add_prefix_space", "trim_offsets", "use_regex")
        val addsSpace = part.flag("add_prefix_space")
        return if (part.flag("trim_offsets")) TrimmedOffsets(addsSpace) else PostProcessorSequence(emptyList())
    }

    private fun sequence(part: Component): PostProcessor {
        val steps = part.only("processors").parts("processors", "post-processor")
        if (steps.count { it.type != "ByteLevel" } > 1) {
            throw TokenizerException.unsupported("several post-processors that each add tokens")
        }
        return PostProcessorSequence(steps.map(::read))
    }

    private fun template(part: Component): PostProcessor {
        part.only("single", "pair", "special_tokens")
        val tokens = part.map("special_tokens")
        return Template(
            part.list("single").map { piece(part, it as? JsonObject ?: throw part.wrong("single"), tokens) },
        )
    }

    private fun piece(
        part: Component,
        piece: JsonObject,
        tokens: JsonObject,
    ): IntArray? {
        val (kind, value) = piece.members.entries.singleOrNull() ?: throw part.wrong("single")
        val entry = Component(value as? JsonObject ?: throw part.wrong("single"), part.name)
        val name = entry.text("id")
        if (kind == "Sequence" && name == "A") return null
        if (kind != "SpecialToken") throw part.wrong("single")
        val token = tokens[name] as? JsonObject ?: throw part.wrong("special_tokens")
        val ids = token["ids"] as? JsonList ?: throw part.wrong("special_tokens")
        return IntArray(ids.values.size) { part.id(ids.values[it], "special_tokens") }
    }
}
