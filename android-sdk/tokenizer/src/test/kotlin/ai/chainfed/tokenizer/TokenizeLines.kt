package ai.chainfed.tokenizer

import ai.chainfed.json.JsonString
import ai.chainfed.json.readJson
import java.io.File

/**
 * Encodes lines: `TokenizeLines special|plain MAX_LENGTH tokenizer.json...`, where a MAX_LENGTH of 0 is none.
 *
 * Reads a JSON string a line from standard input and writes, for each tokenizer in turn, a list for each: the token
 * ids, then where each begins and ends. For each tokenizer it writes to standard error how many tokens that were, and
 * in how many nanoseconds. A text that is refused gives the exception's name.
 */
object TokenizeLines {
    @JvmStatic
    fun main(arguments: Array<String>) {
        val lines = System.`in`.bufferedReader().readLines()
        val texts = lines.map { (readJson(it.toByteArray()) as JsonString).value }
        val longest = arguments[1].toInt().let { if (it == 0) Int.MAX_VALUE else it }
        val out = System.out.bufferedWriter()
        for (path in arguments.drop(2)) {
            val tokenizer = Tokenizer.read(File(path))
            val start = System.nanoTime()
            val encodings = texts.map { runCatching { tokenizer.encode(it, arguments[0] == "special", longest) } }
            val nanoseconds = System.nanoTime() - start
            for (encoding in encodings) {
                val written = encoding.fold({ written(it) }, { "\"${it.javaClass.simpleName}\"" })
                out.write(written)
                out.newLine()
            }
            System.err.println("${encodings.sumOf { it.getOrNull()?.size ?: 0 }} $nanoseconds")
        }
        out.flush()
    }

    private fun written(encoding: Encoding): String {
        val written = StringBuilder("[")
        for (id in encoding.ids) written.append(id).append(',')
        for (place in encoding.offsets) written.append(place).append(',')
        if (encoding.size > 0) written.setLength(written.length - 1)
        return written.append(']').toString()
    }
}
