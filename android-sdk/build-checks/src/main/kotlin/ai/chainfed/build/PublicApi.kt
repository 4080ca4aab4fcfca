package ai.chainfed.build

import org.jetbrains.kotlin.abi.tools.AbiFilters
import org.jetbrains.kotlin.abi.tools.AbiTools
import java.io.File
import kotlin.system.exitProcess

/** What an app can see of a module's compiled classes, as text: one block a class, one line a member, sorted. */
internal fun publicApi(classes: File): String {
    val files = classes.walkTopDown().filter { it.extension == "class" }.sortedBy { it.path }.toList()
    return StringBuilder().also { AbiTools.getInstance().printJvmDump(it, files, AbiFilters.EMPTY) }.toString()
}

/** What became of a line: "+" it is new, "-" it is gone. Lines that stand in both are left out. */
internal fun difference(
    before: String,
    after: String,
): List<String> {
    val old = described(before)
    val new = described(after)
    return (old - new.toSet()).map { "- $it" } + (new - old.toSet()).map { "+ $it" }
}

/** The lines of a dump, each member behind its class. */
private fun described(dump: String): List<String> {
    var owner = ""
    return dump.lines().mapNotNull { line ->
        when {
            line.isBlank() || line == "}" -> null
            line.startsWith('\t') -> "$owner: ${line.trim()}"
            else -> line.removeSuffix(" {").also { owner = it.substringBefore(" :").substringAfterLast(' ') }
        }
    }
}

/**
 * `check` or `write`, and modules: compares what their classes offer with `api/<module>.api` below the working folder,
 * or writes it there. Ends with 1 when they differ.
 */
public fun main(arguments: Array<String>) {
    val modules = arguments.drop(1)
    val missing = modules.find { !classesOf(it).isDirectory }
    if (missing != null) {
        println("$missing is not compiled; build all modules.")
        exitProcess(1)
    }
    val done = if (arguments.first() == "write") modules.map(::write) else modules.map(::check)
    exitProcess(if (done.all { it }) 0 else 1)
}

private fun classesOf(module: String) = File(module, "target/classes")

private fun dumpOf(module: String) = File("api", "$module.api")

private fun write(module: String): Boolean {
    dumpOf(module).parentFile.mkdirs()
    dumpOf(module).writeText(publicApi(classesOf(module)))
    return true
}

private fun check(module: String): Boolean {
    val found = publicApi(classesOf(module))
    val kept = dumpOf(module).takeIf { it.isFile }?.readText().orEmpty()
    if (found == kept) return true
    println(
        "The public API of $module is not what android-sdk/api/$module.api says; " +
            "if that is meant, write it anew: $COMMAND",
    )
    difference(kept, found).forEach(::println)
    return false
}

private const val COMMAND = "mvn -q -B -f android-sdk verify -DskipTests -Dapi=write"
