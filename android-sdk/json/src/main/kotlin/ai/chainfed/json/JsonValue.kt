package ai.chainfed.json

/** A value of a JSON document. Two values are equal when they are written with the same members, in any order. */
public sealed class JsonValue

/** An object; [members] keeps the document's order. */
public data class JsonObject(
    public val members: Map<String, JsonValue>,
) : JsonValue() {
    /** The value of [key], or null when the object does not name it (a JSON null is [JsonNull]). */
    public operator fun get(key: String): JsonValue? = members[key]

    override fun toString(): String = writeJson(this)

    public companion object {
        /** An object of these members, in this order; the last one wins where a key stands twice. */
        public fun of(vararg members: Pair<String, JsonValue>): JsonObject = JsonObject(linkedMapOf(*members))
    }
}

/** A list. */
public data class JsonList(
    public val values: List<JsonValue>,
) : JsonValue() {
    override fun toString(): String = writeJson(this)
}

/** Text, without half surrogate pairs when a reader made it. */
public data class JsonString(
    public val value: String,
) : JsonValue() {
    override fun toString(): String = writeJson(this)
}

/**
 * A number as it is written: a fraction that float64 can hold, or an integer of at most [MAX_INTEGER_DIGITS] digits.
 *
 * A [text] that is no such number is an IllegalArgumentException.
 */
public data class JsonNumber(
    public val text: String,
) : JsonValue() {
    init {
        require(isJsonNumber(text)) { "${shown(text)} is no JSON number" }
        require(!isTooLarge(text)) { "${shown(text)} is too large" }
    }

    /** Whether it is written as an integer: `2` is one, `2.0` and `2e0` are not. */
    public val isInteger: Boolean
        get() = isWrittenAsInteger(text)

    /** The integer, or null when it is not written as one or does not fit in 64 bits. */
    public val asLong: Long?
        get() = if (isInteger) text.toLongOrNull() else null

    /** The nearest float64, or null when it is an integer beyond float64. */
    public val asDouble: Double?
        get() = text.toDouble().takeUnless(Double::isInfinite)

    override fun toString(): String = text

    public companion object {
        /** How many digits an integer may have. */
        public const val MAX_INTEGER_DIGITS: Int = 4300

        /** The integer [value]. */
        public fun of(value: Long): JsonNumber = JsonNumber(value.toString())

        /** The number that reads back as [value]; IllegalArgumentException when that is not finite. */
        public fun of(value: Double): JsonNumber = JsonNumber(value.toString())
    }
}

/** `true` or `false`. */
public data class JsonBoolean(
    public val value: Boolean,
) : JsonValue() {
    override fun toString(): String = value.toString()
}

/** `null`. */
public object JsonNull : JsonValue() {
    override fun toString(): String = "null"
}
