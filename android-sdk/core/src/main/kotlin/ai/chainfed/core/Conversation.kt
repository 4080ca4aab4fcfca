@file:Suppress("ktlint:standard:filename")

package ai.chainfed.core

/** A part of a text, and whether its tokens are to be predicted. */
internal class Piece(
    val text: String,
    val isTarget: Boolean,
)

/**
 * The pieces of a whole conversation; answers, and what ends them, are targets.
 *
 * @throws ChainFedException.BadInput naming [where] when a turn follows another that it cannot follow.
 */
internal fun conversation(
    chat: Chat,
    messages: List<Message>,
    where: String,
): List<Piece> {
    val pieces = ArrayList<Piece>()
    var before = "start"
    for (message in messages) {
        val role = message.role.name.lowercase()
        pieces += between(chat, before, role, where)
        val content = if (chat.strip) message.content.trim(::isPythonSpace) else message.content
        pieces += Piece(content, message.role == Role.ASSISTANT)
        before = role
    }
    return pieces + between(chat, before, "end", where)
}

private fun between(
    chat: Chat,
    before: String,
    after: String,
    where: String,
): List<Piece> {
    val text =
        chat.between["$before>$after"] ?: throw ChainFedException.BadInput(
            "$where has ${turn(before)} before ${turn(after)}; let turns of user and assistant take turns, " +
                "after at most one of system, and end with the assistant's.",
        )
    if (before != "assistant") return listOf(Piece(text, false))
    return listOf(Piece(chat.endOfTurn, true), Piece(text.removePrefix(chat.endOfTurn), false))
}

private fun turn(role: String): String = if (role == "start" || role == "end") "the $role" else "a turn of $role"

/** White space as Python's `str.strip` knows it: Unicode's, and the four separators of ASCII. */
private fun isPythonSpace(char: Char): Boolean =
    char in '\u0009'..'\u000d' || char in '\u001c'..'\u0020' || char == '\u0085' || char == '\u00a0' ||
        Character.getType(char).toByte().let {
            it == Character.SPACE_SEPARATOR || it == Character.LINE_SEPARATOR || it == Character.PARAGRAPH_SEPARATOR
        }
