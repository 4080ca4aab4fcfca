package ai.chainfed.core

import kotlin.math.abs
import kotlin.math.sqrt

// Linear centred kernel alignment of token vectors (Sec. 4.4, Eq. 3), a few columns at a time, to the last bit as
// docs/device.md section 7 has it.

/** Some token vectors: the first [count] * width of [values]; good until the next piece is asked for. */
internal class TokenPiece(
    val values: FloatArray,
    val count: Int,
)

/** Token vectors of one width, in pieces, the same every time. */
internal interface TokenVectors {
    val width: Int
    val numPieces: Int

    fun piece(index: Int): TokenPiece
}

/** Token vectors, their column means, and what turns a centred value into a whole number (0 where nothing varies). */
internal class Centred(
    val tokens: TokenVectors,
) {
    val width: Int = tokens.width
    private val mean = DoubleArray(width)
    val scale: Double

    init {
        var count = 0L
        for (index in 0 until tokens.numPieces) {
            val piece = tokens.piece(index)
            for (at in 0 until piece.count * width) mean[at % width] += piece.values[at].toDouble()
            count += piece.count
        }
        require(count > 0) { "no tokens" }
        for (column in 0 until width) mean[column] /= count.toDouble()
        scale = scaleOf(largest())
    }

    /** [count] token vectors of a piece from [first] on as whole numbers, (count, width). */
    fun whole(
        piece: TokenPiece,
        first: Int,
        count: Int,
        target: DoubleArray,
    ) {
        for (token in 0 until count) {
            val to = token * width
            val from = (first + token) * width
            for (column in 0 until width) {
                target[to + column] = Math.rint((piece.values[from + column].toDouble() - mean[column]) * scale)
            }
        }
    }

    private fun largest(): Double {
        var largest = 0.0
        for (index in 0 until tokens.numPieces) {
            val piece = tokens.piece(index)
            for (at in 0 until piece.count * width) {
                val magnitude = abs(piece.values[at].toDouble() - mean[at % width])
                if (magnitude.isNaN()) return Double.NaN
                if (magnitude > largest) largest = magnitude
            }
        }
        return largest
    }

    private fun scaleOf(largest: Double): Double =
        when {
            largest.isNaN() || largest.isInfinite() -> Double.NaN
            largest == 0.0 -> 0.0
            else -> Math.scalb(1.0, WHOLE_BITS - 1 - Math.getExponent(largest))
        }
}

/** CKA (Eq. 3) from the squared norms of Xc' Yc, Xc' Xc and Yc' Yc: 0 to 1; not a number where a norm is not finite. */
internal fun linearCka(
    cross: Double,
    left: Double,
    right: Double,
): Double {
    if (!cross.isFinite() || !left.isFinite() || !right.isFinite()) return Double.NaN
    if (left == 0.0 || right == 0.0) return 1.0
    return minOf(1.0, maxOf(0.0, cross / sqrt(left * right)))
}

/**
 * The squared Frobenius norm of Lc' Rc in units of both scales; not a number where a value is not finite.
 *
 * Both give the same tokens in the same pieces. What is held grows with the width alone: (width, 256) products at a
 * time.
 */
internal fun squaredCrossNorm(
    left: Centred,
    right: Centred,
): Double {
    if (left.scale.isNaN() || right.scale.isNaN()) return Double.NaN
    var norm = 0.0
    for (start in 0 until right.width step PANEL) {
        val columns = minOf(PANEL, right.width - start)
        val products = Products(left.width, columns)
        addProducts(left, right, start, products)
        for (column in 0 until columns) norm += products.squaredColumn(column)
    }
    return norm
}

/** Goes through both sides' tokens in tiles and adds each tile's products to [products]. */
private fun addProducts(
    left: Centred,
    right: Centred,
    start: Int,
    products: Products,
) {
    val a = DoubleArray(TILE * left.width)
    val b = DoubleArray(TILE * right.width)
    for (index in 0 until left.tokens.numPieces) {
        val leftPiece = left.tokens.piece(index)
        val rightPiece = right.tokens.piece(index)
        check(leftPiece.count == rightPiece.count) { "the two sides have other tokens" }
        for (first in 0 until leftPiece.count step TILE) {
            val size = minOf(TILE, leftPiece.count - first)
            left.whole(leftPiece, first, size, a)
            right.whole(rightPiece, first, size, b)
            products.add(a, b, size, right.width, start)
        }
    }
}

/** Sums of products of whole numbers, (height, columns); those of a tile stay below 2^53, so that they are exact. */
private class Products(
    private val height: Int,
    private val columns: Int,
) {
    private val sums = DoubleArray(height * columns)
    private val row = DoubleArray(columns)

    fun add(
        a: DoubleArray,
        b: DoubleArray,
        numTokens: Int,
        width: Int,
        start: Int,
    ) {
        for (i in 0 until height) {
            row.fill(0.0)
            var token = 0
            // Four at a time, so that a row is written once for them: exact sums have no order.
            while (token + 4 <= numTokens) {
                val from = token * width + start
                val at = token * height + i
                addFour(a[at], a[at + height], a[at + 2 * height], a[at + 3 * height], b, from, width)
                token += 4
            }
            while (token < numTokens) {
                val x = a[token * height + i]
                val from = token * width + start
                for (j in 0 until columns) row[j] += x * b[from + j]
                token++
            }
            for (j in 0 until columns) sums[i * columns + j] += row[j]
        }
    }

    private fun addFour(
        x0: Double,
        x1: Double,
        x2: Double,
        x3: Double,
        b: DoubleArray,
        from: Int,
        width: Int,
    ) {
        for (j in 0 until columns) {
            val at = from + j
            row[j] += x0 * b[at] + x1 * b[at + width] + x2 * b[at + 2 * width] + x3 * b[at + 3 * width]
        }
    }

    fun squaredColumn(column: Int): Double {
        var total = 0.0
        for (i in 0 until height) total += sums[i * columns + column] * sums[i * columns + column]
        return total
    }
}

private const val WHOLE_BITS = 22
private const val TILE = 256 // tokens: 2 * 22 + 8 bits, which float64 holds
private const val PANEL = 256
