package ai.chainfed.testing

import ai.chainfed.core.ChainFedException
import ai.chainfed.core.Example
import ai.chainfed.core.Message
import ai.chainfed.core.Passage
import ai.chainfed.core.Role
import ai.chainfed.core.TrainingItem
import ai.chainfed.json.JsonException
import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.JsonValue
import ai.chainfed.json.readJson
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.util.zip.GZIPInputStream

/**
 * The rows of a JSON-lines file (gzipped when its name ends in .gz) in the forms that `chainfed device` reads: `text`
 * and `label`; or `text`, `messages`, `instruction` with `output`, `prompt` with `response`, or `input_ids`.
 *
 * The file is read anew whenever the flow is collected, which throws [ChainFedException.BadInput], naming file and
 * line, when it is absent, empty or damaged.
 */
public fun itemsOf(file: File): Flow<TrainingItem> =
    flow {
        var rows = 0
        try {
            open(file).use { stream ->
                var number = 0
                while (true) {
                    val line = readLine(stream) ?: break
                    number++
                    if (line.any { it > ' '.code.toByte() || it < 0 }) {
                        emit(Row(parse(line, "$file, line $number"), "$file, line $number").item())
                        rows++
                    }
                }
            }
        } catch (error: IOException) {
            throw ChainFedException.BadInput(
                "$file cannot be read (${error.message}); give UTF-8 JSON lines, gzipped if the name ends in .gz.",
                error,
            )
        }
        if (rows == 0) throw ChainFedException.BadInput("$file holds no example; give at least one row.")
    }

private fun open(file: File): InputStream {
    if (!file.isFile) {
        throw ChainFedException.BadInput("$file does not exist; give a JSON-lines file (.jsonl or .jsonl.gz).")
    }
    val stream = file.inputStream()
    return (if (file.name.endsWith(".gz")) GZIPInputStream(stream) else stream).buffered()
}

private fun readLine(stream: InputStream): ByteArray? {
    val line = ByteArrayOutputStream()
    while (true) {
        val byte = stream.read()
        if (byte < 0) return if (line.size() == 0) null else line.toByteArray()
        if (byte == '\n'.code) return line.toByteArray()
        line.write(byte)
    }
}

private fun parse(
    line: ByteArray,
    where: String,
): JsonObject {
    val value =
        try {
            readJson(line)
        } catch (error: JsonException) {
            throw ChainFedException.BadInput(
                "$where is not JSON (${error.reason}); write one JSON object a line.",
                error,
            )
        }
    return value as? JsonObject
        ?: throw ChainFedException.BadInput(
            "$where is no JSON object; write rows like {\"text\": \"...\", \"label\": 0}.",
        )
}

private class Row(
    private val row: JsonObject,
    private val where: String,
) {
    fun item(): TrainingItem {
        if ("label" in row.members) return example()
        if ("messages" in row.members) return Passage.conversation(messages())
        if ("input_ids" in row.members) return Passage.ids(ids())
        for ((question, answer) in listOf("instruction" to "output", "prompt" to "response")) {
            if (question in row.members && answer in row.members) {
                val parts = listOfNotNull(string(question), if ("input" in row.members) string("input") else null)
                return Passage.answer(parts.filter { it.isNotEmpty() }.joinToString("\n\n"), string(answer))
            }
        }
        return Passage.text(string("text"))
    }

    private fun example(): Example {
        val label = row["label"]
        if (label is JsonString) return Example(string("text"), label.value)
        val number = (label as? JsonNumber)?.asLong ?: wrong("`label` must be an integer or a label's name")
        return Example(string("text"), number.coerceIn(-1, Int.MAX_VALUE.toLong()).toInt())
    }

    private fun messages(): List<Message> {
        val turns = list("messages").map(::message)
        if (turns.none { it.role == Role.ASSISTANT }) wrong("`messages` holds no turn of the assistant")
        return turns
    }

    private fun message(turn: JsonValue): Message {
        val fields = (turn as? JsonObject)?.members.orEmpty()
        val role = Role.values().find { it.name.lowercase() == (fields["role"] as? JsonString)?.value }
        val content = (fields["content"] as? JsonString)?.value
        if (role == null || content == null) {
            wrong("a turn of `messages` is not like {\"role\": \"user\", \"content\": \"...\"}")
        }
        return Message(role, content)
    }

    private fun ids(): IntArray =
        list("input_ids")
            .map { id ->
                val number = (id as? JsonNumber)?.asLong
                if (number == null || number !in 0..Int.MAX_VALUE) wrong("`input_ids` holds what is no token id")
                number.toInt()
            }.toIntArray()

    private fun list(field: String): List<JsonValue> =
        (row[field] as? JsonList)?.values?.takeIf { it.isNotEmpty() }
            ?: wrong("`$field` must be a list that is not empty")

    private fun string(field: String): String = (row[field] as? JsonString)?.value ?: wrong("`$field` must be a string")

    private fun wrong(what: String): Nothing = throw ChainFedException.BadInput("$where: $what; correct the row.")
}
