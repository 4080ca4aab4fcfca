package ai.chainfed.tokenizer

import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.readJson
import org.junit.Assume.assumeTrue
import java.io.File
import java.util.Random
import java.util.zip.GZIPInputStream

/** The vectors of the repository. */
fun vectors(): File = File(System.getProperty("chainfed.vectors"))

/** Real models and data, kept outside the repository; without them the test is skipped. */
fun sharedFolder(): File {
    val folder = System.getenv("CHAINFED_SHARED")?.let(::File) ?: File(System.getProperty("chainfed.beside"))
    assumeTrue(
        "needs the shared models and data: set CHAINFED_SHARED to their folder",
        File(folder, "models").isDirectory,
    )
    return folder
}

/** The first [count] texts of every data set. */
fun realTexts(count: Int): List<String> {
    val files = File(sharedFolder(), "data").walk().filter { it.name.endsWith(".jsonl.gz") }.sorted()
    return files.toList().flatMap { file ->
        GZIPInputStream(file.inputStream()).bufferedReader().useLines { lines ->
            val rows = lines.map { readJson(it.toByteArray()) as JsonObject }
            rows.mapNotNull { (it["text"] as? JsonString)?.value }.take(count).toList()
        }
    }
}

/** Characters of many scripts, marks, spaces and added tokens; all older than Unicode 8. */
fun drawnTexts(count: Int): List<String> {
    val random = Random(5)
    val blocks =
        listOf(
            0x20..0x7E,
            0x20..0x7E,
            0x00..0xFF,
            0x100..0x24F,
            0x300..0x345,
            0x391..0x3A1,
            0x400..0x52F,
            0x5D0..0x5EA,
        ) +
            listOf(0x620..0x6D5, 0x904..0x94D, 0xE01..0xE3A, 0x1100..0x1112, 0x1161..0x1175, 0x1E00..0x1EFF) +
            listOf(0x2000..0x2064, 0x2100..0x218B, 0x3041..0x3096, 0x4E00..0x9FCC, 0xAC00..0xD7A3, 0xF900..0xFA6D) +
            listOf(0xFB00..0xFB06, 0xFF01..0xFFBE, 0x1D400..0x1D454, 0x1F600..0x1F640, 0x09..0x0D, 0x20000..0x20050)
    val fragments = listOf("[MASK]", "[CLS]", " ", "  ", "\n", "don't", "e\u0301", "İ", "ſ", "2024", "dog", "honey")
    return List(count) {
        val text = StringBuilder()
        repeat(1 + random.nextInt(10)) {
            if (random.nextInt(3) == 0) text.append(fragments[random.nextInt(fragments.size)])
            val block = blocks[random.nextInt(blocks.size)]
            repeat(
                random.nextInt(6),
            ) { text.appendCodePoint(block.first + random.nextInt(block.last - block.first + 1)) }
            if (random.nextInt(3) == 0) text.append(' ')
        }
        text.toString()
    }
}
