package ai.chainfed.json

/** How deep [readJson] follows lists and objects when it is not told otherwise. */
public const val MAX_JSON_DEPTH: Int = 200

/**
 * The value of UTF-8 JSON, read strictly: what two readers could understand differently is refused.
 *
 * Throws [JsonException] when the bytes are no UTF-8 or no JSON, begin with a byte order mark, name a key twice in one
 * object, hold NaN, a number beyond float64 or half a surrogate pair, go on after the value, or are nested deeper than
 * [maxDepth].
 */
@Throws(JsonException::class)
public fun readJson(
    data: ByteArray,
    maxDepth: Int = MAX_JSON_DEPTH,
): JsonValue {
    if (data.size >= 3 && data[0] == 0xEF.toByte() && data[1] == 0xBB.toByte() && data[2] == 0xBF.toByte()) {
        throw JsonException("it begins with a byte order mark")
    }
    val bad = firstInvalidUtf8(data)
    if (bad >= 0) throw JsonException("it is no UTF-8 at byte $bad")
    return JsonReader(data, maxDepth).document()
}

/** Valid UTF-8 to values: byte for byte, so that no second copy of a large document is needed. */
private class JsonReader(
    private val data: ByteArray,
    private val maxDepth: Int,
) {
    private var at = 0

    fun document(): JsonValue {
        val value = value(0)
        skipSpace()
        if (at < data.size) throw noJson("something follows its end")
        return value
    }

    private fun value(depth: Int): JsonValue {
        skipSpace()
        return when (val next = peek()) {
            '{'.code -> members(depth + 1)
            '['.code -> values(depth + 1)
            '"'.code -> JsonString(string())
            't'.code -> word("true", JsonBoolean(true))
            'f'.code -> word("false", JsonBoolean(false))
            'n'.code -> word("null", JsonNull)
            else -> if (next == '-'.code || isDigit(next)) number() else throw noValue()
        }
    }

    private fun members(depth: Int): JsonObject {
        open(depth)
        val members = LinkedHashMap<String, JsonValue>()
        if (close('}')) return JsonObject(members)
        do {
            skipSpace()
            if (peek() != '"'.code) throw noJson("a key in double quotes is missing")
            val key = string()
            skipSpace()
            if (!accept(':')) throw noJson("a colon is missing")
            if (members.put(key, value(depth)) != null) throw JsonException("it names ${shown(key)} twice")
        } while (another('}'))
        return JsonObject(members)
    }

    private fun values(depth: Int): JsonList {
        open(depth)
        val values = ArrayList<JsonValue>()
        if (close(']')) return JsonList(values)
        do {
            values.add(value(depth))
        } while (another(']'))
        return JsonList(values)
    }

    private fun open(depth: Int) {
        if (depth > maxDepth) throw JsonException("it is nested too deeply")
        at++
    }

    private fun close(bracket: Char): Boolean {
        skipSpace()
        return accept(bracket)
    }

    private fun another(bracket: Char): Boolean {
        skipSpace()
        if (accept(',')) return true
        if (accept(bracket)) return false
        throw noJson("a comma or '$bracket' is missing")
    }

    private fun number(): JsonNumber {
        val start = at
        if (data.startsWith("-Infinity", at)) throw JsonException("it holds -Infinity, which is no JSON")
        val end = endOfJsonNumber(at, data.size) { data[it].toInt().toChar() }
        if (end < 0) throw noJson("a number is not complete")
        at = end
        val text = String(data, start, end - start, Charsets.US_ASCII)
        if (isTooLarge(text)) throw JsonException("it holds the number ${shown(text)}, which is too large")
        return JsonNumber(text)
    }

    private fun <T> word(
        word: String,
        value: T,
    ): T {
        if (!data.startsWith(word, at)) throw noValue()
        at += word.length
        return value
    }

    private fun string(): String {
        val start = ++at
        while (at < data.size) {
            when (val byte = data[at].toInt()) {
                '"'.code -> return String(data, start, at++ - start, Charsets.UTF_8)
                '\\'.code -> return escapedString(start)
                else -> if (byte in 0 until ' '.code) throw noJson("a string holds a control character") else at++
            }
        }
        throw noJson("a string does not end")
    }

    /** The string that began at [start], when [at] is its first escape. */
    private fun escapedString(start: Int): String {
        val text = StringBuilder()
        var copied = start
        while (at < data.size) {
            val byte = data[at].toInt()
            if (byte == '"'.code || byte == '\\'.code) {
                text.append(String(data, copied, at - copied, Charsets.UTF_8))
                at++
                if (byte == '"'.code) return text.toString().also(::refuseHalfPairs)
                text.append(escaped())
                copied = at
            } else if (byte in 0 until ' '.code) {
                throw noJson("a string holds a control character")
            } else {
                at++
            }
        }
        throw noJson("a string does not end")
    }

    private fun escaped(): Char {
        val letter = peek()
        at++
        return when (letter.toChar()) {
            '"', '\\', '/' -> letter.toChar()
            'b' -> '\b'
            'f' -> '\u000C'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> codeUnit()
            else -> throw noJson("a string holds an escape that JSON does not have")
        }
    }

    private fun codeUnit(): Char {
        var unit = 0
        repeat(4) {
            val digit = if (at < data.size) Character.digit(data[at].toInt().toChar(), 16) else -1
            if (digit < 0) throw noJson("a string holds an escape that is not complete")
            unit = unit * 16 + digit
            at++
        }
        return unit.toChar()
    }

    private fun refuseHalfPairs(text: String) {
        if (hasHalfPair(text)) throw JsonException("it holds half a surrogate pair, which is no text")
    }

    private fun noValue(): JsonException =
        when {
            at >= data.size -> noJson("a value is missing")
            data.startsWith("NaN", at) -> JsonException("it holds NaN, which is no JSON")
            data.startsWith("Infinity", at) -> JsonException("it holds Infinity, which is no JSON")
            else -> noJson("a value is missing")
        }

    private fun noJson(why: String): JsonException = JsonException("it is no JSON: $why at byte $at")

    private fun peek(): Int = if (at < data.size) data[at].toInt() else -1

    private fun accept(char: Char): Boolean = (peek() == char.code).also { if (it) at++ }

    private fun skipSpace() {
        while (at < data.size) {
            val byte = data[at].toInt()
            if (byte != ' '.code && byte != '\n'.code && byte != '\t'.code && byte != '\r'.code) return
            at++
        }
    }
}

private fun ByteArray.startsWith(
    word: String,
    at: Int,
): Boolean = at + word.length <= size && word.indices.all { this[at + it].toInt() == word[it].code }

private fun isDigit(byte: Int): Boolean = byte >= '0'.code && byte <= '9'.code
