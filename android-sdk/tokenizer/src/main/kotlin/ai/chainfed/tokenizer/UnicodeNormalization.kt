package ai.chainfed.tokenizer

import java.text.Normalizer.Form
import java.util.ArrayDeque
import java.text.Normalizer as JavaNormalizer

/**
 * NFD, NFC, NFKD and NFKC with the place of every character.
 *
 * What a character decomposes to, which characters compose and how marks are ordered is asked of java.text.Normalizer,
 * which follows the Unicode version of the running Java or Android.
 */
internal class UnicodeNormalization(
    private val form: Form,
) : Normalizer {
    private val decomposed = if (form == Form.NFC || form == Form.NFD) Form.NFD else Form.NFKD
    private val composes = form == Form.NFC || form == Form.NFKC

    override fun normalize(text: AlignedText): AlignedText {
        if (JavaNormalizer.isNormalized(text.string, form)) return text
        val changes = ordered(decomposed(text))
        return text.transformed(if (composes) composed(changes) else changes)
    }

    private fun decomposed(text: AlignedText): Changes {
        val changes = Changes(text.size * 2)
        for (place in 0 until text.size) {
            val point = text[place]
            if (point < 0x80) {
                changes.add(point, 0)
            } else {
                val parts = JavaNormalizer.normalize(String(Character.toChars(point)), decomposed)
                codePoints(parts).forEachIndexed { index, part -> changes.add(part, if (index == 0) 0 else 1) }
            }
        }
        return changes
    }

    /** The same characters, with the marks behind each other in canonical order. */
    private fun ordered(changes: Changes): Changes {
        val result = Changes(changes.size)
        var at = 0
        while (at < changes.size) {
            var end = at
            while (end < changes.size && isReordered(changes.point(end))) end++
            if (end - at > 1) {
                orderMarks(changes, at, end, result)
                at = end
            } else {
                result.add(changes.point(at), changes.change(at))
                at++
            }
        }
        return result
    }

    private fun orderMarks(
        changes: Changes,
        start: Int,
        end: Int,
        result: Changes,
    ) {
        val marks = StringBuilder()
        val waiting = HashMap<Int, ArrayDeque<Int>>()
        for (index in start until end) {
            marks.appendCodePoint(changes.point(index))
            waiting.getOrPut(changes.point(index)) { ArrayDeque() }.add(changes.change(index))
        }
        // The order is stable: equal marks, which have equal classes, keep theirs.
        for (mark in codePoints(JavaNormalizer.normalize(marks, Form.NFD))) {
            result.add(mark, waiting.getValue(mark).removeFirst())
        }
    }

    private fun composed(changes: Changes): Changes {
        val composition = Composition(changes.size)
        for (index in 0 until changes.size) composition.add(changes.point(index), changes.change(index))
        return composition.finished()
    }
}

/** The canonical composition of decomposed characters, as the Unicode standard defines it. */
private class Composition(
    capacity: Int,
) {
    private val result = Changes(capacity)
    private var marks = Changes(4)
    private var starter = NONE
    private var starterChange = 0

    fun add(
        point: Int,
        change: Int,
    ) {
        val mark = isReordered(point)
        if (starter == NONE) {
            if (mark) result.add(point, change) else begin(point, change)
            return
        }
        val blocked = marks.size > 0 && (!mark || !isBefore(marks.point(marks.size - 1), point))
        val composed = if (blocked) NONE else compose(starter, point)
        if (composed != NONE) {
            starter = composed
            starterChange += change - 1
        } else if (mark) {
            marks.add(point, change)
        } else {
            flush()
            begin(point, change)
        }
    }

    fun finished(): Changes {
        if (starter != NONE) flush()
        return result
    }

    private fun begin(
        point: Int,
        change: Int,
    ) {
        starter = point
        starterChange = change
    }

    private fun flush() {
        result.add(starter, starterChange)
        for (index in 0 until marks.size) result.add(marks.point(index), marks.change(index))
        if (marks.size > 0) marks = Changes(4)
    }

    private fun compose(
        first: Int,
        second: Int,
    ): Int {
        if (second < 0x300) return NONE
        val composed = JavaNormalizer.normalize(pair(first, second), Form.NFC)
        val point = composed.codePointAt(0)
        return if (Character.charCount(point) == composed.length) point else NONE
    }

    private companion object {
        const val NONE = -1
    }
}

/** Whether [point] has a combining class, so that it may change places with its neighbours. */
private fun isReordered(point: Int): Boolean {
    if (point < 0x300 || !isMark(point)) return false
    // U+0345 has the largest class of all: every other mark with a class goes before it.
    return point == 0x345 || isBefore(point, 0x345)
}

/** Whether the class of [first] is smaller than that of [second], and neither is 0. */
private fun isBefore(
    first: Int,
    second: Int,
): Boolean {
    val wrongWay = pair(second, first)
    return JavaNormalizer.normalize(wrongWay, Form.NFD) != wrongWay
}

private fun pair(
    first: Int,
    second: Int,
): String = String(intArrayOf(first, second), 0, 2)
