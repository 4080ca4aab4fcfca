package ai.chainfed.core

import java.nio.FloatBuffer

// The arithmetic that a device does outside its programs, in the order of docs/device.md section 7: float64, one
// rounding an operation, sums from the first term to the last.

/** 0 + first + second + ..., each sum rounded. */
internal fun sumInOrder(terms: Iterable<Double>): Double {
    var total = 0.0
    for (term in terms) total += term
    return total
}

/** Mean and population variance of each column of (rows, width), rounded to float32 at the end. */
internal class Moments(
    rows: FloatBuffer,
    numRows: Int,
    width: Int,
) {
    val mean = FloatArray(width)
    val variance = FloatArray(width)

    init {
        for (column in 0 until width) {
            var total = 0.0
            for (row in 0 until numRows) total += rows.get(row * width + column).toDouble()
            val exact = total / numRows
            var squares = 0.0
            for (row in 0 until numRows) {
                val centred = rows.get(row * width + column).toDouble() - exact
                squares += centred * centred
            }
            mean[column] = exact.toFloat()
            variance[column] = (squares / numRows).toFloat()
        }
    }
}
