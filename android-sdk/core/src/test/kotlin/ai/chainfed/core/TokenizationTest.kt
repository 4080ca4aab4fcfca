package ai.chainfed.core

import kotlinx.coroutines.flow.asFlow
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test
import java.io.File

class TokenizationTest {
    private fun folderOf(name: String) = File(Vectors.folder, "bundles/$name")

    private fun manifestOf(name: String): Manifest =
        readManifest(File(folderOf(name), "bundle/manifest.json").readBytes(), "The manifest")

    private fun read(
        name: String,
        vararg items: TrainingItem,
        hasTokenizer: Boolean = true,
        change: Manifest.() -> Manifest = { this },
    ): TokenData =
        runBlocking {
            val tokenizer = File(folderOf(name), "bundle/tokenizer.json").takeIf { hasTokenizer }
            readTokens(items.asList().asFlow(), manifestOf(name).change(), tokenizer)
        }

    private fun refusal(read: () -> Unit): String =
        assertThrows(ChainFedException.BadInput::class.java) { read() }.message.orEmpty()

    private fun rows(
        values: IntArray,
        width: Int,
    ): List<List<Int>> = values.asList().chunked(width)

    private fun Manifest.packing(): Manifest = copy(task = task.copy(packing = true))

    @Test
    fun `texts become the ids of the vectors, and labels their numbers`() {
        val names = listOf("animals", "food", "machines")
        for (name in listOf("encoder", "decoder")) {
            val cases = Vectors.read("bundles/$name/cases.json")["texts"]!!.list()
            val examples =
                cases.mapIndexed { index, case ->
                    val text = case["text"].string()
                    if (index % 2 == 1) Example(text, 1) else Example(text, names[index % 3])
                }
            val data = read(name, *examples.toTypedArray())
            val padding = manifestOf(name).padTokenId.toInt()
            val expected = cases.map { it["input_ids"].ints().asList() }
            assertEquals(expected, rows(data.ids, data.seqLen))
            assertEquals(expected.map { ids -> ids.dropLastWhile { it == padding }.size }, data.lengths.asList())
            assertArrayEquals(intArrayOf(0, 1, 2, 1, 1), data.labels)
        }
    }

    @Test
    fun `a label that the bundle does not have is refused without the text`() {
        val wrong = listOf(Example("secret", "robots"), Example("secret", 3), Example("secret", -1))
        for (example in wrong) {
            assertEquals(
                "Item 2 of the example source has a label that is none of the bundle's 3; give one of animals, food, " +
                    "machines.",
                refusal { read("encoder", Example("a dog", 0), example) },
            )
        }
        assertEquals(
            "Item 1 of the example source has no label, which a classifier learns; give an Example.",
            refusal { read("encoder", Passage.text("secret")) },
        )
        assertEquals("The example source gives no example; give at least one.", refusal { read("encoder") })
    }

    @Test
    fun `every token of a text is the target of the one before it`() {
        val data = read("language", Passage.text("the old dog"), Example("bread and honey and bread and honey a", 0))
        assertEquals(
            listOf(listOf(2, 4, 11, 13, 0, 0, 0, 0), listOf(2, 15, 7, 16, 7, 15, 7, 16)),
            rows(data.ids, 8),
        )
        val none = NO_TARGET
        assertEquals(
            listOf(listOf(4, 11, 13, none, none, none, none, none), listOf(15, 7, 16, 7, 15, 7, 16, none)),
            rows(data.labels, 8),
        )
        assertArrayEquals(intArrayOf(4, 8), data.lengths)
    }

    @Test
    fun `only the answers of a conversation are targets`() {
        val chat = Passage.answer("the dog", "saw bread")
        val data = read("language", chat) { copy(seqLen = 16) }
        // [CLS] ### Instruction: the dog ### Response: saw bread
        assertEquals(listOf(2, 1, 1, 4, 13, 1, 1, 9, 15), data.ids.take(data.lengths[0]))
        val targets = data.labels.asList().withIndex().filter { it.value != NO_TARGET }
        assertEquals(listOf(6 to 9, 7 to 15), targets.map { it.index to it.value })
    }

    @Test
    fun `rows in which nothing is to be predicted are left out`() {
        val late = Passage.answer("the dog saw a fox near the pump", "honey")
        val data = read("language", late, Passage.ids(intArrayOf(5)), Passage.ids(intArrayOf(5, 6)))
        assertEquals(listOf(listOf(5, 6, 0, 0, 0, 0, 0, 0)), rows(data.ids, 8))
        assertEquals(
            "No passage has a token to predict among its first 8; give other data, or a bundle with longer rows.",
            refusal { read("language", late) },
        )
    }

    @Test
    fun `packed rows hold whole passages, and predict none of their first tokens`() {
        val passages = listOf(intArrayOf(5, 6, 7), intArrayOf(8, 9), intArrayOf(10, 11, 12, 13), intArrayOf(14, 15))
        val data = read("language", *passages.map { Passage.ids(it) }.toTypedArray()) { packing() }
        assertEquals(listOf(listOf(5, 6, 7, 8, 9, 0, 0, 0), listOf(10, 11, 12, 13, 14, 15, 0, 0)), rows(data.ids, 8))
        val none = NO_TARGET
        assertEquals(
            listOf(listOf(6, 7, none, 9, none, none, none, none), listOf(11, 12, 13, none, 15, none, none, none)),
            rows(data.labels, 8),
        )
        assertArrayEquals(intArrayOf(5, 6), data.lengths)
    }

    @Test
    fun `a passage longer than a row is cut before it is packed`() {
        val long = IntArray(11) { 4 + it }
        val data = read("language", Passage.ids(long), Passage.ids(intArrayOf(5, 6))) { packing() }
        assertEquals(listOf((4..11).toList(), listOf(5, 6, 0, 0, 0, 0, 0, 0)), rows(data.ids, 8))
    }

    @Test
    fun `what cannot be read is refused by its number`() {
        val where = "Item 2 of the example source"
        val sound = Passage.ids(intArrayOf(5, 6))
        assertEquals(
            "$where: token id 20 is not below the vocabulary of 20.",
            refusal { read("language", sound, Passage.ids(intArrayOf(19, 20))) },
        )
        assertEquals(
            "$where is text, but the bundle was exported from a model without a tokenizer; give token ids.",
            refusal { read("language", sound, Passage.text("secret"), hasTokenizer = false) },
        )
        val silent =
            assertThrows(ChainFedException.BadBundle::class.java) {
                read("language", sound, Passage.answer("q", "a")) { copy(task = task.copy(chat = null)) }
            }
        assertEquals(
            "The bundle says nothing about conversations, but the examples hold one; export it again.",
            silent.message,
        )
    }

    @Test
    fun `passages that teach nothing cannot be made`() {
        assertThrows(IllegalArgumentException::class.java) { Passage.ids(intArrayOf()) }
        assertThrows(IllegalArgumentException::class.java) { Passage.ids(intArrayOf(1, -1)) }
        assertThrows(IllegalArgumentException::class.java) {
            Passage.conversation(listOf(Message(Role.USER, "q")))
        }
    }

    @Test
    fun `the fingerprint names ids, lengths and labels`() {
        val data = read("encoder", Example("a dog", 0), Example("honey", 1))
        assertEquals(data.fingerprint, read("encoder", Example("a dog", 0), Example("honey", 1)).fingerprint)
        val others =
            listOf(
                read("encoder", Example("a fox", 0), Example("honey", 1)),
                read("encoder", Example("a dog", 1), Example("honey", 1)),
                read("encoder", Example("honey", 1), Example("a dog", 0)),
                data.select(intArrayOf(0)),
                TokenData(data.ids, data.lengths.map { it - 1 }.toIntArray(), data.labels, 8, 3),
                TokenData(data.ids, data.lengths, data.labels, 8, 4),
            )
        assertEquals(others.size + 1, (others.map { it.fingerprint } + data.fingerprint).toSet().size)
    }
}
