package ai.chainfed.build

import java.io.File
import kotlin.system.exitProcess

/** How much of a module its tests ran through, in percent. */
internal class Coverage(
    val lines: Double,
    val branches: Double,
)

/** The sums over a JaCoCo report's CSV, one class a row under a row of names. */
internal fun coverageOf(rows: List<String>): Coverage {
    val names = rows.first().split(',')
    val classes = rows.drop(1).filter { it.isNotBlank() }.map { names.zip(it.split(',')).toMap() }

    fun share(what: String): Double {
        val covered = classes.sumOf { it.getValue("${what}_COVERED").toInt() }
        val all = covered + classes.sumOf { it.getValue("${what}_MISSED").toInt() }
        return if (all == 0) FULL else FULL * covered / all
    }
    return Coverage(share("LINE"), share("BRANCH"))
}

private const val FULL = 100.0

/** A report's CSV, the module's name and the least share of lines in percent: says the shares; ends with 1 below it. */
public fun main(arguments: Array<String>) {
    val (report, module, least) = arguments
    val file = File(report)
    if (!file.isFile) {
        println("There is no coverage report of $module; run its tests with mvn verify.")
        exitProcess(1)
    }
    val found = coverageOf(file.readLines())
    val figures = "The tests of $module run through %.1f %% of its lines and %.1f %% of its branches"
    val isEnough = found.lines >= least.toDouble()
    println(figures.format(found.lines, found.branches) + if (isEnough) "." else ", less than $least % of the lines.")
    exitProcess(if (isEnough) 0 else 1)
}
