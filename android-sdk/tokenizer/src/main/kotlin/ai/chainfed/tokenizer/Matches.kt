package ai.chainfed.tokenizer

/** A text cut where a pattern matches: ranges of characters that follow each other and cover it, matches or not. */
internal class Matches {
    private val starts = IntList()
    private val ends = IntList()
    private val found = IntList()

    val size: Int get() = starts.size

    fun start(index: Int): Int = starts[index]

    fun end(index: Int): Int = ends[index]

    fun isMatch(index: Int): Boolean = found[index] != 0

    fun add(
        start: Int,
        end: Int,
        match: Boolean,
    ) {
        starts.add(start)
        ends.add(end)
        found.add(if (match) 1 else 0)
    }

    fun extendLast(end: Int) {
        ends[size - 1] = end
    }

    /** The same ranges, with matches and what is between them the other way round. */
    fun inverted(): Matches {
        val other = Matches()
        for (index in 0 until size) other.add(start(index), end(index), !isMatch(index))
        return other
    }
}

/** What becomes of the matches when a text is cut at them. */
internal enum class SplitBehavior(
    val word: String,
) {
    REMOVED("Removed"),
    ISOLATED("Isolated"),
    MERGED_WITH_PREVIOUS("MergedWithPrevious"),
    MERGED_WITH_NEXT("MergedWithNext"),
    CONTIGUOUS("Contiguous"),
}

/** The pieces of [text] when it is cut at [matches]; empty ones are left out. */
internal fun split(
    text: AlignedText,
    matches: Matches,
    behavior: SplitBehavior,
    pieces: MutableList<AlignedText>,
) {
    val ranges =
        when (behavior) {
            SplitBehavior.REMOVED, SplitBehavior.ISOLATED -> matches
            SplitBehavior.CONTIGUOUS -> joined(matches) { match, previous -> match == previous }
            SplitBehavior.MERGED_WITH_PREVIOUS -> joined(matches) { match, previous -> match && !previous }
            SplitBehavior.MERGED_WITH_NEXT -> joinedWithNext(matches)
        }
    for (index in 0 until ranges.size) {
        if (behavior == SplitBehavior.REMOVED && ranges.isMatch(index)) continue
        if (ranges.end(index) > ranges.start(index)) pieces.add(text.slice(ranges.start(index), ranges.end(index)))
    }
}

private inline fun joined(
    matches: Matches,
    joins: (match: Boolean, previous: Boolean) -> Boolean,
): Matches {
    val result = Matches()
    var previous = false
    for (index in 0 until matches.size) {
        val match = matches.isMatch(index)
        if (joins(match, previous) && result.size > 0) {
            result.extendLast(matches.end(index))
        } else {
            result.add(matches.start(index), matches.end(index), false)
        }
        previous = match
    }
    return result
}

/** A match takes what follows it, but for another match. */
private fun joinedWithNext(matches: Matches): Matches {
    val result = Matches()
    var index = 0
    while (index < matches.size) {
        val joins = matches.isMatch(index) && index + 1 < matches.size && !matches.isMatch(index + 1)
        val last = if (joins) index + 1 else index
        result.add(matches.start(index), matches.end(last), false)
        index = last + 1
    }
    return result
}

/** Where in a text something is. */
internal fun interface TextPattern {
    fun find(text: AlignedText): Matches
}

/** Each character that [matches] is a match of its own. */
internal class CharacterPattern(
    private val matches: (Int) -> Boolean,
) : TextPattern {
    override fun find(text: AlignedText): Matches {
        val found = Matches()
        var last = 0
        for (place in 0 until text.size) {
            if (!matches(text[place])) continue
            if (last < place) found.add(last, place, false)
            found.add(place, place + 1, true)
            last = place + 1
        }
        if (last < text.size) found.add(last, text.size, false)
        return found
    }
}

/** Each run of characters of one [kind] is a match; characters of kind 0 are none. */
internal class RunPattern(
    private val kind: (Int) -> Int,
) : TextPattern {
    override fun find(text: AlignedText): Matches {
        val found = Matches()
        var start = 0
        while (start < text.size) {
            val current = kind(text[start])
            var end = start + 1
            while (end < text.size && kind(text[end]) == current) end++
            found.add(start, end, current != 0)
            start = end
        }
        return found
    }
}

/** Another pattern with matches and what is between them the other way round. */
internal class InvertedPattern(
    private val pattern: TextPattern,
) : TextPattern {
    override fun find(text: AlignedText): Matches = pattern.find(text).inverted()
}
