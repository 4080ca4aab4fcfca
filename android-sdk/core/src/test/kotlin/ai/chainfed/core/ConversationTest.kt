package ai.chainfed.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

/** The pieces of a conversation, as tests/core/test_passages.py has them. */
class ConversationTest {
    private val chat =
        Chat(
            between =
                mapOf(
                    "start>user" to "<u>",
                    "user>assistant" to "</u><a>",
                    "assistant>user" to "</a><u>",
                    "assistant>end" to "</a>",
                ),
            endOfTurn = "</a>",
            strip = true,
            specialTokens = false,
        )

    private fun user(text: String) = Message(Role.USER, text)

    private fun assistant(text: String) = Message(Role.ASSISTANT, text)

    private fun pieces(
        chat: Chat,
        vararg messages: Message,
    ): List<Pair<String, Boolean>> =
        conversation(chat, messages.asList(), "Item 3").map { it.text to it.isTarget }.filter { it.first.isNotEmpty() }

    @Test
    fun `answers and what ends them are targets`() {
        val expected =
            listOf(
                "<u>" to false,
                "q" to false,
                "</u><a>" to false,
                "a" to true,
                "</a>" to true,
                "<u>" to false,
                "r" to false,
                "</u><a>" to false,
                "b" to true,
                "</a>" to true,
            )
        assertEquals(expected, pieces(chat, user(" q "), assistant("a"), user("r"), assistant("b")))
    }

    @Test
    fun `only Python's white space is taken away, and only where the bundle says so`() {
        val spaces = "\t\u001c\u0085\u00a0\u2003\u2028\u3000\n "
        assertEquals("a b", pieces(chat, user("q"), assistant("$spaces${"a b"}$spaces"))[3].first)
        // No white space to Python: the zero-width space and the byte order mark.
        assertEquals("\u200ba\ufeff", pieces(chat, user("q"), assistant("\u200ba\ufeff"))[3].first)
        assertEquals(" a ", pieces(chat.copy(strip = false), user("q"), assistant(" a "))[3].first)
    }

    @Test
    fun `turns in a wrong order are named`() {
        val cases =
            listOf(
                "the start before a turn of assistant" to listOf(assistant("a")),
                "a turn of user before the end" to listOf(user("q")),
                "a turn of user before a turn of user" to listOf(user("q"), user("r")),
                "the start before a turn of system" to listOf(Message(Role.SYSTEM, "s"), user("q")),
            )
        for ((what, messages) in cases) {
            val refusal =
                assertThrows(ChainFedException.BadInput::class.java) { conversation(chat, messages, "Item 3") }
            assertEquals(
                "Item 3 has $what; let turns of user and assistant take turns, after at most one of system, and end " +
                    "with the assistant's.",
                refusal.message,
            )
        }
    }
}
