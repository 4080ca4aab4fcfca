package ai.chainfed.tokenizer

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonString
import ai.chainfed.json.JsonValue
import ai.chainfed.json.shown

/** Models by their type. */
internal object ModelReader {
    fun read(part: Component): Model =
        when (part.type) {
            "WordLevel" -> part.only("vocab", "unk_token").let { WordLevelModel(vocabulary(it), it.text("unk_token")) }
            "WordPiece" -> wordPiece(part)
            "BPE" -> bpe(part)
            "Unigram" -> unigram(part)
            else -> throw part.unknownType()
        }

    private fun wordPiece(part: Component): Model {
        part.only("vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word")
        return WordPieceModel(
            vocabulary(part),
            part.text("unk_token"),
            part.text("continuing_subword_prefix"),
            part.id(part["max_input_chars_per_word"], "max_input_chars_per_word"),
        )
    }

    private fun bpe(part: Component): Model {
        part.only(
            "vocab",
            "merges",
            "dropout",
            "unk_token",
            "continuing_subword_prefix",
            "end_of_word_suffix",
            "fuse_unk",
            "byte_fallback",
            "ignore_merges",
        )
        if (part.has("dropout") && (part["dropout"] as? JsonNumber)?.asDouble != 0.0) {
            throw TokenizerException.unsupported("${part.name} with 'dropout'")
        }
        val options =
            BpeOptions(
                optionalText(part, "unk_token"),
                optionalText(part, "continuing_subword_prefix") ?: "",
                optionalText(part, "end_of_word_suffix") ?: "",
                optionalFlag(part, "fuse_unk"),
                optionalFlag(part, "byte_fallback"),
                optionalFlag(part, "ignore_merges"),
            )
        val vocabulary = vocabulary(part)
        return BpeModel(vocabulary, merges(part, vocabulary, options.prefix), options)
    }

    private fun merges(
        part: Component,
        vocabulary: Map<String, Int>,
        prefix: String,
    ): Merges {
        val list = part.list("merges")
        val merges = Merges(list.size)
        for (entry in list) {
            if (entry is JsonString && entry.value.startsWith("#version")) continue
            val (left, right) = merge(part, entry)
            val result = left + right.removePrefix(prefix)
            merges.add(
                vocabulary[left] ?: throw missing(left),
                vocabulary[right] ?: throw missing(right),
                vocabulary[result] ?: throw missing(result),
            )
        }
        return merges
    }

    /** Both tokens of a merge, which older files write as one string with a space between them. */
    private fun merge(
        part: Component,
        entry: JsonValue,
    ): List<String> {
        val tokens =
            when (entry) {
                is JsonString -> entry.value.split(' ')
                is JsonList -> entry.values.map { (it as? JsonString)?.value ?: throw part.wrong("merges") }
                else -> emptyList()
            }
        return tokens.takeIf { it.size == 2 } ?: throw part.wrong("merges")
    }

    private fun missing(token: String): TokenizerException =
        TokenizerException.damaged("its merges name ${shown(token)}, which is not in the vocabulary")

    private fun unigram(part: Component): Model {
        part.only("vocab", "unk_id", "byte_fallback")
        val tokens = part.list("vocab").map { scoredToken(part, it) }
        val unknown = if (part.has("unk_id")) part.id(part["unk_id"], "unk_id") else null
        if (unknown != null && unknown >= tokens.size) throw part.wrong("unk_id")
        return UnigramModel(tokens, unknown, optionalFlag(part, "byte_fallback"))
    }

    private fun scoredToken(
        part: Component,
        entry: JsonValue,
    ): ScoredToken {
        val values = (entry as? JsonList)?.values
        val token = (values?.getOrNull(0) as? JsonString)?.value
        val score = (values?.getOrNull(1) as? JsonNumber)?.asDouble
        if (token == null || score == null || values.size != 2) throw part.wrong("vocab")
        return ScoredToken(token, score)
    }

    private fun vocabulary(part: Component): Map<String, Int> {
        val members = part.map("vocab").members
        val vocabulary = HashMap<String, Int>(members.size * 2)
        for ((token, id) in members) vocabulary[token] = part.id(id, "vocab")
        return vocabulary
    }

    private fun optionalText(
        part: Component,
        key: String,
    ): String? = if (part.has(key)) part.text(key) else null

    private fun optionalFlag(
        part: Component,
        key: String,
    ): Boolean = part.has(key) && part.flag(key)
}
