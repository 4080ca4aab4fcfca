package ai.chainfed.json

/**
 * Bytes that are refused as JSON.
 *
 * [reason] can follow "it cannot be read: " in a sentence; it has no full stop at its end and no control characters.
 */
public class JsonException(
    public val reason: String,
) : Exception(reason)

private const val SHOWN = 80

/** Text from outside as it may stand in a sentence: quoted, without control characters, at most 80 characters. */
public fun shown(text: String): String {
    val quoted = StringBuilder("'")
    var at = 0
    while (at < text.length && quoted.length <= SHOWN) {
        val point = text.codePointAt(at)
        if (isPrintable(point)) quoted.appendCodePoint(point) else quoted.append("\\u").append(hex(point))
        at += Character.charCount(point)
    }
    quoted.append('\'')
    if (quoted.length <= SHOWN) return quoted.toString()
    val end = if (Character.isHighSurrogate(quoted[SHOWN - 4])) SHOWN - 4 else SHOWN - 3
    return quoted.substring(0, end) + "..."
}

/**
 * Whether [text] has neither control characters nor white space other than the plain space, nor anything unassigned.
 */
public fun isPrintable(text: String): Boolean {
    var at = 0
    while (at < text.length) {
        val point = text.codePointAt(at)
        if (!isPrintable(point)) return false
        at += Character.charCount(point)
    }
    return true
}

private fun hex(point: Int): String = Integer.toHexString(point).padStart(4, '0')

private fun isPrintable(point: Int): Boolean =
    point == ' '.code ||
        when (Character.getType(point).toByte()) {
            Character.CONTROL, Character.FORMAT, Character.SURROGATE, Character.UNASSIGNED, Character.PRIVATE_USE,
            Character.SPACE_SEPARATOR, Character.LINE_SEPARATOR, Character.PARAGRAPH_SEPARATOR,
            -> false

            else -> true
        }
