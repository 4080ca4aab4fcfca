package ai.chainfed.tokenizer

/**
 * A piece of normalised text whose characters know where in the original text they come from.
 *
 * Everything is counted in code points. Character `i` is `points[from + i]`, and comes from the original's characters
 * `starts[from + i]` until `ends[from + i]`. [shift] is the place in the original where the piece begins.
 */
internal class AlignedText(
    private val points: IntArray,
    private val starts: IntArray,
    private val ends: IntArray,
    private val from: Int,
    private val to: Int,
    val shift: Int,
) {
    private var text: String? = null

    val size: Int get() = to - from

    /** The characters as a string. */
    val string: String get() = text ?: String(points, from, size).also { text = it }

    operator fun get(index: Int): Int = points[from + index]

    fun start(index: Int): Int = starts[from + index]

    fun end(index: Int): Int = ends[from + index]

    /** The characters [first] until [last], which must not be empty. */
    fun slice(
        first: Int,
        last: Int,
    ): AlignedText =
        if (first == 0 && last == size) {
            this
        } else {
            AlignedText(points, starts, ends, from + first, from + last, starts[from + first])
        }

    /** The same piece without its first [leading] and last [trailing] characters. */
    fun stripped(
        leading: Int,
        trailing: Int,
    ): AlignedText = AlignedText(points, starts, ends, from + leading, maxOf(from + leading, to - trailing), shift)

    inline fun count(matches: (Int) -> Boolean): Int = (from until to).count { matches(points[it]) }

    /**
     * The text that [changes] make of this one, when the first [removed] characters go without a replacement.
     *
     * A change of 1 adds its character, which then belongs where the one before it does; 0 replaces the next character;
     * -N replaces the next one and removes N that follow.
     */
    fun transformed(
        changes: Changes,
        removed: Int = 0,
    ): AlignedText {
        val newStarts = IntArray(changes.size)
        val newEnds = IntArray(changes.size)
        var at = minOf(removed, size)
        for (index in 0 until changes.size) {
            val change = changes.change(index)
            val source = if (change > 0) at - 1 else minOf(at, size - 1)
            newStarts[index] = if (source < 0) shift else start(source)
            newEnds[index] = if (source < 0) shift else end(source)
            if (change <= 0) at = minOf(size, at + 1 - change)
        }
        return AlignedText(changes.points(), newStarts, newEnds, 0, changes.size, shift)
    }

    /** The text with [content] in the place of every match; it belongs where the last replaced character does. */
    fun replaced(
        matches: Matches,
        content: IntArray,
    ): AlignedText {
        val building = AlignedTextBuilder(size + content.size)
        for (index in 0 until matches.size) {
            val last = matches.end(index)
            if (!matches.isMatch(index)) {
                for (place in matches.start(index) until last) building.add(get(place), start(place), end(place))
            } else {
                val start = if (last == 0) shift else start(last - 1)
                val end = if (last == 0) shift else end(last - 1)
                for (point in content) building.add(point, start, end)
            }
        }
        return building.build(shift)
    }

    /** The text with [content] before it, as if its first character were written that way. */
    fun prepended(content: IntArray): AlignedText {
        if (size == 0) return this
        val building = AlignedTextBuilder(size + content.size)
        for (point in content) building.add(point, start(0), end(0))
        for (place in 0 until size) building.add(get(place), start(place), end(place))
        return building.build(shift)
    }

    companion object {
        /** A whole text, not normalised yet. */
        fun of(text: String): AlignedText {
            val points = codePoints(text)
            return AlignedText(
                points,
                IntArray(points.size) { it },
                IntArray(points.size) { it + 1 },
                0,
                points.size,
                0,
            )
        }
    }
}

/** Characters and places, gathered one by one. */
internal class AlignedTextBuilder(
    capacity: Int,
) {
    private var points = IntArray(capacity)
    private var starts = IntArray(capacity)
    private var ends = IntArray(capacity)
    private var size = 0

    fun add(
        point: Int,
        start: Int,
        end: Int,
    ) {
        if (size == points.size) {
            val capacity = maxOf(16, size * 2)
            points = points.copyOf(capacity)
            starts = starts.copyOf(capacity)
            ends = ends.copyOf(capacity)
        }
        points[size] = point
        starts[size] = start
        ends[size++] = end
    }

    fun build(shift: Int): AlignedText = AlignedText(points, starts, ends, 0, size, shift)
}

/** What a normaliser makes of a text: characters, each with what it does to the text before; see [AlignedText]. */
internal class Changes(
    capacity: Int,
) {
    private val points = IntList(capacity)
    private val changes = IntList(capacity)

    val size: Int get() = points.size

    fun add(
        point: Int,
        change: Int,
    ) {
        points.add(point)
        changes.add(change)
    }

    fun point(index: Int): Int = points[index]

    fun change(index: Int): Int = changes[index]

    fun setChange(
        index: Int,
        change: Int,
    ) {
        changes[index] = change
    }

    fun points(): IntArray = points.toArray()
}

/** Integers in a growing array. */
internal class IntList(
    capacity: Int = 16,
) {
    private var values = IntArray(capacity)

    var size: Int = 0
        private set

    operator fun get(index: Int): Int = values[index]

    operator fun set(
        index: Int,
        value: Int,
    ) {
        values[index] = value
    }

    fun add(value: Int) {
        if (size == values.size) values = values.copyOf(maxOf(16, size * 2))
        values[size++] = value
    }

    fun toArray(): IntArray = values.copyOf(size)
}

/** The code points of [text]. */
internal fun codePoints(text: String): IntArray {
    val points = IntArray(text.codePointCount(0, text.length))
    var at = 0
    for (index in points.indices) {
        points[index] = text.codePointAt(at)
        at += Character.charCount(points[index])
    }
    return points
}

/** How many bytes [point] has in UTF-8. */
internal fun utf8Length(point: Int): Int =
    when {
        point < 0x80 -> 1
        point < 0x800 -> 2
        point < 0x10000 -> 3
        else -> 4
    }

/** Byte [index] of [point] in UTF-8. */
internal fun utf8Byte(
    point: Int,
    index: Int,
): Int {
    val length = utf8Length(point)
    if (length == 1) return point
    val bits = point shr (6 * (length - 1 - index))
    if (index > 0) return 0x80 or (bits and 0x3F)
    return bits or (0xF00 shr length and 0xFF)
}
