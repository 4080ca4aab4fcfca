package ai.chainfed.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test
import java.io.File

/** What a reader says of a manifest that it refuses; that it does is held by tests/vectors/damaged. */
class ManifestReaderTest {
    private val text = File(Vectors.folder, "bundles/encoder/bundle/manifest.json").readText()

    private fun sentence(
        before: String,
        after: String,
    ): String {
        val changed = text.replaceFirst(before, after)
        assertEquals(before, true, changed != text)
        return sentence(changed.toByteArray())
    }

    private fun sentence(data: ByteArray): String =
        assertThrows(ChainFedException.BadBundle::class.java) { readManifest(data, "The run's manifest") }
            .message
            .orEmpty()

    @Test
    fun `a manifest is read as it stands`() {
        val manifest = readManifest(text.toByteArray(), "The run's manifest")
        assertEquals(listOf(2, 16, 20), manifest.model.run { listOf(numLayers, hiddenSize, vocabSize) })
        assertEquals(listOf("animals", "food", "machines"), manifest.task.labels)
        assertEquals(listOf(3, 8, 4), listOf(manifest.batchSize, manifest.seqLen, manifest.bottleneck))
        assertEquals(setOf(1, 2), manifest.windows.keys)
        assertEquals("block", manifest.blockProgram(1))
        val largest = maxOf(manifest.prefix.anonymousBytes, manifest.windows.getValue(2).anonymousBytes)
        assertEquals(largest, manifest.roundBytes(2))
        assertEquals(listOf(3, 16), manifest.stateShapes().getValue("heads.1.weight"))
    }

    @Test
    fun `another format or version`() {
        assertEquals(
            "The run's manifest has bundle format version 2, but this ChainFed reads up to 1; install a newer " +
                "ChainFed or export the bundle again.",
            sentence("\"format_version\": 1", "\"format_version\": 2"),
        )
        assertEquals(
            "The run's manifest has bundle format version unknown, but this ChainFed reads up to 1; install a newer " +
                "ChainFed or export the bundle again.",
            sentence("\"format_version\": 1", "\"format_version\": \"1\""),
        )
        assertEquals(
            "The run's manifest cannot be used: it is no ChainFed manifest; export the bundle again.",
            sentence("chainfed-bundle", "another"),
        )
        assertEquals(
            "The run's manifest cannot be used: it has more than 10000000 bytes; export the bundle again.",
            sentence(ByteArray(10_000_001)),
        )
    }

    @Test
    fun `a field is named with its place and what is wrong with it`() {
        val cases =
            listOf(
                ("\"seq_len\": 8" to "\"seq_len\": 0") to
                    "field 'shapes.seq_len' is 0, which is outside 1 to 2147483647",
                ("\"seq_len\": 8" to "\"seq_len\": 8.5") to "field 'shapes.seq_len' is no whole number",
                ("\"seq_len\": 8" to "\"seq_len\": \"8\"") to "field 'shapes.seq_len' is no number",
                ("\"seq_len\": 8" to "\"sequence\": 8") to "field 'shapes.seq_len' is missing",
                ("\"food\"" to "\"animals\"") to "field 'task.labels' names 'animals' more than once",
                ("\"classification\"" to "\"regression\"") to
                    "field 'task.kind' is 'regression', which this ChainFed does not know",
                ("\"int64\"" to "\"int65\"") to
                    "field 'programs.embed.inputs.0.dtype' is 'int65', which is unknown",
                ("\"pad_token_id\": 0" to "\"pad_token_id\": 20") to "the padding token 20 is outside the vocabulary",
                ("\"num_layers\": 2" to "\"num_layers\": 1") to "it has a window of 2 layers, but the model has 1",
                ("\"num_layers\": 2" to "\"num_layers\": 3") to
                    "it needs the file 'weights/layer_02.safetensors', which is not among its files",
            )
        for ((change, reason) in cases) {
            val expected = "The run's manifest cannot be used: $reason; export the bundle again."
            assertEquals(expected, sentence(change.first, change.second))
        }
    }

    @Test
    fun `a file outside the bundle`() {
        for (path in listOf("../secret", "/etc/hosts", "a//b", ".hidden")) {
            assertEquals(
                "The run's manifest names a file outside the bundle ('$path'); do not use this bundle.",
                sentence("\"weights/layer_01.safetensors\"", "\"$path\""),
            )
        }
    }
}
