package ai.chainfed.tokenizer

import ai.chainfed.json.JsonBoolean
import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNull
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.JsonValue
import ai.chainfed.json.shown

/** An object of a tokenizer file, under the [name] by which a sentence calls it; what is wrong is refused by key. */
internal class Component(
    private val value: JsonObject,
    val name: String,
) {
    val type: String get() = text("type")

    operator fun get(key: String): JsonValue? = value[key]

    fun has(key: String): Boolean = value[key] != null && value[key] !is JsonNull

    fun text(key: String): String = (value[key] as? JsonString)?.value ?: throw wrong(key)

    fun flag(key: String): Boolean = (value[key] as? JsonBoolean)?.value ?: throw wrong(key)

    fun list(key: String): List<JsonValue> = (value[key] as? JsonList)?.values ?: throw wrong(key)

    fun map(key: String): JsonObject = value[key] as? JsonObject ?: throw wrong(key)

    /** A token id. */
    fun id(
        value: JsonValue?,
        key: String,
    ): Int = (value as? JsonNumber)?.asLong?.takeIf { it in 0..MAX_ID }?.toInt() ?: throw wrong(key)

    fun part(
        key: String,
        kind: String,
    ): Component = of(value[key] ?: JsonNull, kind, this, key)

    fun optionalPart(
        key: String,
        kind: String,
    ): Component? = if (has(key)) part(key, kind) else null

    /** This component, which must have no keys but `type` and these. */
    fun only(vararg keys: String): Component = apply { refuseOthers(keys.toSet() + "type") }

    fun refuseOthers(keys: Set<String>) {
        val other = value.members.keys.firstOrNull { it !in keys } ?: return
        throw TokenizerException.unsupported("$name with ${shown(other)}")
    }

    /** A string or a regular expression to look for. */
    fun pattern(key: String): TextPattern {
        val (kind, text) = map(key).members.entries.singleOrNull() ?: throw wrong(key)
        if (text !is JsonString) throw wrong(key)
        return when (kind) {
            "String" -> RegexPattern.literal(text.value)
            "Regex" -> RegexPattern.oniguruma(text.value)
            else -> throw wrong(key)
        }
    }

    fun base64(key: String): ByteArray = decodeBase64(text(key)) ?: throw wrong(key)

    fun wrong(key: String): TokenizerException = TokenizerException.damaged("$name has no usable ${shown(key)}")

    fun unknownValue(
        key: String,
        word: String,
    ): TokenizerException = TokenizerException.unsupported("$name with ${shown(key)} ${shown(word)}")

    fun unknownType(): TokenizerException = TokenizerException.unsupported("$name")

    companion object {
        const val MAX_ID = 0x7FFF_FFFEL

        /** The object [value], of a [kind] such as "normalizer", that stands at [key] of [parent]. */
        fun of(
            value: JsonValue,
            kind: String,
            parent: Component,
            key: String,
        ): Component {
            val members = value as? JsonObject ?: throw parent.wrong(key)
            val type = members["type"] as? JsonString ?: throw TokenizerException.damaged("a $kind has no type")
            return Component(members, "the $kind ${shown(type.value)}")
        }
    }
}

// java.util.Base64 exists from API 26 on; so it may be used here.
private fun decodeBase64(text: String): ByteArray? =
    try {
        java.util.Base64
            .getDecoder()
            .decode(text)
    } catch (_: IllegalArgumentException) {
        null
    }
