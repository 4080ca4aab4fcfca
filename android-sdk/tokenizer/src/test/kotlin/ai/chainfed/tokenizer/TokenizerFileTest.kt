package ai.chainfed.tokenizer

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

/** What a file may not ask for, by name, and what is no tokenizer at all. */
class TokenizerFileTest {
    private val model = """{"type":"WordLevel","vocab":{"[UNK]":0,"a":1,"b":2},"unk_token":"[UNK]"}"""

    private fun file(
        normalizer: String = "null",
        preTokenizer: String = "null",
        postProcessor: String = "null",
        model: String = this.model,
        added: String = "[]",
    ): String =
        """{"version":"1.0","truncation":null,"padding":null,"added_tokens":$added,"normalizer":$normalizer,""" +
            """"pre_tokenizer":$preTokenizer,"post_processor":$postProcessor,"decoder":{"type":"Any"},"model":$model}"""

    private fun sentence(file: String): String {
        val error = assertThrows(file, TokenizerException::class.java) { Tokenizer.read(file.toByteArray()) }
        val message = error.message!!
        assertTrue(message, message.endsWith(".") && message.none { it < ' ' } && message.length < 500)
        return message
    }

    private fun unsupported(
        what: String,
        file: String,
    ) {
        assertTrue(
            sentence(file),
            sentence(file).startsWith("The tokenizer file asks for $what, which is not supported"),
        )
    }

    private fun damaged(
        reason: String,
        file: String,
    ) {
        assertEquals("The tokenizer file cannot be read: $reason; export the bundle again.", sentence(file))
    }

    @Test
    fun `a file with nothing but a model is read`() {
        assertEquals(
            listOf(1),
            Tokenizer
                .read(file().toByteArray())
                .encode("a")
                .ids
                .toList(),
        )
    }

    @Test
    fun `unknown parts are refused by name`() {
        val odd = """{"type":"Odd"}"""
        unsupported("the normalizer 'Odd'", file(normalizer = odd))
        unsupported("the normalizer 'Odd'", file(normalizer = """{"type":"Sequence","normalizers":[$odd]}"""))
        unsupported("the pre-tokenizer 'Odd'", file(preTokenizer = odd))
        unsupported("the post-processor 'Odd'", file(postProcessor = odd))
        unsupported("the model 'Odd'", file(model = odd))
        unsupported("the normalizer 'NFC' with 'new'", file(normalizer = """{"type":"NFC","new":1}"""))
        unsupported("the file with 'extra'", file().replaceFirst("{", "{\"extra\":1,"))
        unsupported("version '2.0'", file().replace("\"1.0\"", "\"2.0\""))
        unsupported(
            "the pre-tokenizer 'Split' with 'behavior' 'Odd'",
            file(preTokenizer = """{"type":"Split","pattern":{"String":"a"},"behavior":"Odd","invert":false}"""),
        )
        unsupported(
            "the pre-tokenizer 'Metaspace' with 'prepend_scheme' 'odd'",
            file(preTokenizer = """{"type":"Metaspace","replacement":"▁","prepend_scheme":"odd"}"""),
        )
        unsupported(
            "the model 'BPE' with 'dropout'",
            file(model = """{"type":"BPE","dropout":0.1,"vocab":{},"merges":[]}"""),
        )
    }

    @Test
    fun `two steps that add tokens are refused`() {
        val bert = """{"type":"BertProcessing","sep":["[SEP]",1],"cls":["[CLS]",2]}"""
        val twice = """{"type":"Sequence","processors":[$bert,$bert]}"""
        unsupported("several post-processors that each add tokens", file(postProcessor = twice))
    }

    @Test
    fun `what is no tokenizer is refused`() {
        damaged("it is no JSON: a value is missing at byte 0", "")
        damaged("it is no JSON object", "[]")
        damaged("the file has no usable 'version'", "{}")
        damaged("a model has no type", file(model = "{}"))
        damaged("the file has no usable 'model'", file(model = "null"))
        damaged("the model 'WordLevel' has no usable 'vocab'", file(model = """{"type":"WordLevel","unk_token":"a"}"""))
        damaged(
            "the model 'WordLevel' has no usable 'vocab'",
            file(model = """{"type":"WordLevel","unk_token":"a","vocab":{"a":-1}}"""),
        )
        damaged(
            "its merges name 'ab', which is not in the vocabulary",
            file(model = """{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}"""),
        )
        damaged(
            "the model 'BPE' has no usable 'merges'",
            file(model = """{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b c"]}"""),
        )
        damaged(
            "its precompiled_charsmap is cut off",
            file(normalizer = """{"type":"Precompiled","precompiled_charsmap":"/////w=="}"""),
        )
        damaged(
            "the normalizer 'Precompiled' has no usable 'precompiled_charsmap'",
            file(normalizer = """{"type":"Precompiled","precompiled_charsmap":"?"}"""),
        )
    }

    @Test
    fun `every truncation of a file is refused`() {
        val whole = file(normalizer = """{"type":"NFC"}""").toByteArray()
        for (size in whole.indices) {
            assertThrows(TokenizerException::class.java) { Tokenizer.read(whole.copyOf(size)) }
        }
    }

    @Test
    fun `a file that is not there is refused`() {
        val error = assertThrows(TokenizerException::class.java) { Tokenizer.read(File("no/tokenizer.json")) }
        assertEquals(
            "The tokenizer file cannot be read: tokenizer.json cannot be opened; export the bundle again.",
            error.message,
        )
    }

    @Test
    fun `a text without tokens gives a sentence`() {
        val unknown = Tokenizer.read(file(model = model.replace("\"[UNK]\":0", "\"c\":0")).toByteArray())
        for (text in listOf("x", "\uD800")) {
            val error = assertThrows(TokenizerException::class.java) { unknown.encode(text) }
            assertTrue(error.message, error.message!!.startsWith("The text has no tokens: it holds "))
        }
        assertThrows(IllegalArgumentException::class.java) { unknown.encode("a", maxLength = 0) }
    }
}
