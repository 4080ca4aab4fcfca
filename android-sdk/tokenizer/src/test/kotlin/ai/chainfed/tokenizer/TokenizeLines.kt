package ai.chainfed.tokenizer

import ai.chainfed.json.JsonString
import ai.chainfed.json.readJson
import java.io.File

/**
 * Encodes lines: `TokenizeLines tokenizer.json [special|plain] [maxLength]`.
 *
 * Reads a JSON string a line from standard input and writes for each a list: the token ids, then where each begins and
 * ends. Afterwards it writes to standard error how many tokens it gave, and in how many nanoseconds.
 */
object TokenizeLines {
    @JvmStatic
    fun main(arguments: Array<String>) {
        val tokenizer = Tokenizer.read(File(arguments[0]))
        val special = arguments.getOrElse(1) { "special" } == "special"
        val longest = arguments.getOrNull(2)?.toInt() ?: Int.MAX_VALUE
        val texts =
            System.`in`
                .bufferedReader()
                .lineSequence()
                .map {
                    (readJson(it.toByteArray()) as JsonString).value
                }.toList()
        val start = System.nanoTime()
        val encodings = texts.map { tokenizer.encode(it, special, longest) }
        val nanoseconds = System.nanoTime() - start
        val out = System.out.bufferedWriter()
        for (encoding in encodings) {
            out.write((encoding.ids.asIterable() + encoding.offsets.asIterable()).joinToString(",", "[", "]\n"))
        }
        out.flush()
        System.err.println("${encodings.sumOf { it.size }} $nanoseconds")
    }
}
