package ai.chainfed.apk

import java.io.File

/** Options of a step, by name. */
internal class Options(
    private val values: Map<String, List<String>>,
) {
    fun text(name: String): String = all(name).singleOrNull() ?: throw BuildFailure("This step needs --$name once.")

    fun file(name: String) = File(text(name))

    fun number(name: String) =
        text(name).toIntOrNull() ?: throw BuildFailure("--$name takes a whole number, not '${text(name)}'.")

    fun all(name: String): List<String> = values[name].orEmpty()

    /** The paths in the file that option [name] gives, as Maven's dependency plugin writes them. */
    fun paths(name: String): List<File> =
        file(name)
            .readText()
            .trim()
            .split(File.pathSeparator)
            .filter(String::isNotEmpty)
            .map(::File)

    companion object {
        fun parse(arguments: List<String>): Options {
            val pairs =
                arguments.chunked(2).map { pair ->
                    val isOption = pair.size == 2 && pair[0].startsWith("--")
                    if (!isOption) throw BuildFailure("'${pair[0]}' is no option with a value.")
                    pair[0].removePrefix("--") to pair[1]
                }
            return Options(pairs.groupBy({ it.first }, { it.second }))
        }
    }
}
