package ai.chainfed.json

/** Whether [text] has a high surrogate without a low one behind it, or the other way round. */
internal fun hasHalfPair(text: String): Boolean {
    var at = 0
    while (at < text.length) {
        val point = text.codePointAt(at)
        if (point in 0xD800..0xDFFF) return true
        at += Character.charCount(point)
    }
    return false
}

/** Whether all of [text] is a number as JSON writes them. */
internal fun isJsonNumber(text: String): Boolean =
    text.isNotEmpty() && endOfJsonNumber(0, text.length, text::get) == text.length

/** Whether the number [text] has neither a fraction nor an exponent. */
internal fun isWrittenAsInteger(text: String): Boolean = text.none { it == '.' || it == 'e' || it == 'E' }

/** Whether the number [text] is beyond float64 or, as an integer, has too many digits. */
internal fun isTooLarge(text: String): Boolean =
    if (isWrittenAsInteger(text)) {
        text.length - (if (text[0] == '-') 1 else 0) > JsonNumber.MAX_INTEGER_DIGITS
    } else {
        text.toDouble().isInfinite()
    }

/** The end of the number that begins at [start] of [size] characters, or -1 when none does. */
internal inline fun endOfJsonNumber(
    start: Int,
    size: Int,
    char: (Int) -> Char,
): Int {
    val whole = if (start < size && char(start) == '-') start + 1 else start
    var at = endOfDigits(whole, size, char)
    // JSON has no leading zeros: after a zero the number is over.
    if (at > whole + 1 && char(whole) == '0') at = whole + 1
    if (at == whole) return -1
    if (at < size && char(at) == '.') {
        val end = endOfDigits(at + 1, size, char)
        if (end > at + 1) at = end
    }
    return endOfExponent(at, size, char)
}

/** The end of an exponent at [start], or [start] when there is none. */
private inline fun endOfExponent(
    start: Int,
    size: Int,
    char: (Int) -> Char,
): Int {
    if (start >= size || (char(start) != 'e' && char(start) != 'E')) return start
    val isSigned = start + 1 < size && (char(start + 1) == '+' || char(start + 1) == '-')
    val digits = start + if (isSigned) 2 else 1
    val end = endOfDigits(digits, size, char)
    return if (end > digits) end else start
}

private inline fun endOfDigits(
    start: Int,
    size: Int,
    char: (Int) -> Char,
): Int {
    var at = start
    while (at < size && char(at) in '0'..'9') at++
    return at
}

/** The first byte of [data] that does not belong to well-formed UTF-8, or -1. */
internal fun firstInvalidUtf8(data: ByteArray): Int {
    var at = 0
    while (at < data.size) {
        val length = lengthOfUtf8(data, at)
        if (length == 0) return at
        at += length
    }
    return -1
}

/** How many bytes the well-formed sequence at [at] has; 0 when there is none. */
private fun lengthOfUtf8(
    data: ByteArray,
    at: Int,
): Int {
    val lead = data[at].toInt() and 0xFF
    if (lead < 0x80) return 1
    val length =
        when (lead) {
            in 0xC2..0xDF -> 2
            in 0xE0..0xEF -> 3
            in 0xF0..0xF4 -> 4
            else -> return 0
        }
    if (at + length > data.size) return 0
    for (next in 1 until length) if (data[at + next].toInt() and 0xC0 != 0x80) return 0
    val second = data[at + 1].toInt() and 0xFF
    // Too long for what they say, halves of surrogate pairs, beyond the last character.
    val wrong =
        when (lead) {
            0xE0 -> second < 0xA0
            0xED -> second > 0x9F
            0xF0 -> second < 0x90
            0xF4 -> second > 0x8F
            else -> false
        }
    return if (wrong) 0 else length
}
