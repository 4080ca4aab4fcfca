package ai.chainfed.tokenizer

// General categories come from the Unicode version of the running Java or Android. Hugging Face's library takes them
// from Unicode 8 to 16, depending on the place, so characters that are younger than both may be cut differently.

/** Unicode's property White_Space. */
internal fun isWhitespace(point: Int): Boolean =
    when (point) {
        in 0x09..0x0D, 0x20, 0x85, 0xA0, 0x1680, in 0x2000..0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000 -> true
        else -> false
    }

/** ASCII punctuation, signs included, or a category P. */
internal fun isPunctuation(point: Int): Boolean {
    if (point < 0x80) return point in 0x21..0x2F || point in 0x3A..0x40 || point in 0x5B..0x60 || point in 0x7B..0x7E
    return when (Character.getType(point).toByte()) {
        Character.CONNECTOR_PUNCTUATION, Character.DASH_PUNCTUATION, Character.START_PUNCTUATION,
        Character.END_PUNCTUATION, Character.INITIAL_QUOTE_PUNCTUATION, Character.FINAL_QUOTE_PUNCTUATION,
        Character.OTHER_PUNCTUATION,
        -> true

        else -> false
    }
}

/** A category N. */
internal fun isNumeric(point: Int): Boolean =
    when (Character.getType(point).toByte()) {
        Character.DECIMAL_DIGIT_NUMBER, Character.LETTER_NUMBER, Character.OTHER_NUMBER -> true
        else -> false
    }

/** A category M. */
internal fun isMark(point: Int): Boolean =
    when (Character.getType(point).toByte()) {
        Character.NON_SPACING_MARK, Character.COMBINING_SPACING_MARK, Character.ENCLOSING_MARK -> true
        else -> false
    }

/** Category Mn. */
internal fun isNonSpacingMark(point: Int): Boolean =
    point >= 0x300 && Character.getType(point).toByte() == Character.NON_SPACING_MARK

/** Categories Cc, Cf and Co. */
internal fun isControl(point: Int): Boolean =
    when (Character.getType(point).toByte()) {
        Character.CONTROL, Character.FORMAT, Character.PRIVATE_USE -> true
        else -> false
    }

/** What a regular expression's `\w` means: letters, marks, decimal digits, connectors and joiners. */
internal fun isWord(point: Int): Boolean =
    Character.isAlphabetic(point) ||
        isMark(point) ||
        point == 0x200C ||
        point == 0x200D ||
        when (Character.getType(point).toByte()) {
            Character.DECIMAL_DIGIT_NUMBER, Character.CONNECTOR_PUNCTUATION -> true
            else -> false
        }

/** Ideographs that BERT takes for words of their own. */
internal fun isIdeograph(point: Int): Boolean =
    when (point) {
        in 0x4E00..0x9FFF, in 0x3400..0x4DBF, in 0xF900..0xFAFF -> true
        in 0x20000..0x2A6DF, in 0x2A700..0x2B73F, in 0x2B740..0x2B81F, in 0x2B920..0x2CEAF, in 0x2F800..0x2FA1F -> true
        else -> false
    }
