package ai.chainfed.tokenizer

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonObject

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
        processor is TrimmedOffsets || (processor is PostProcessorSequence && processor.any(::trims))

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
