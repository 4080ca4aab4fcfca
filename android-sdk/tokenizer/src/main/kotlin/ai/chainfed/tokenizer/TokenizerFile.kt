package ai.chainfed.tokenizer

import ai.chainfed.json.JsonException
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
