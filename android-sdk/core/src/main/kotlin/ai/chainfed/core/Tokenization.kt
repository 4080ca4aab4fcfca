package ai.chainfed.core

import ai.chainfed.tokenizer.Encoding
import ai.chainfed.tokenizer.Tokenizer
import ai.chainfed.tokenizer.TokenizerException
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.map
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.flow.withIndex
import java.io.File

/**
 * The items of a source as rows for a bundle's task.
 *
 * @throws ChainFedException.BadInput when they cannot be used, saying which item by its number, never what is in it.
 */
internal suspend fun readTokens(
    items: Flow<TrainingItem>,
    manifest: Manifest,
    tokenizerFile: File?,
): TokenData {
    val texts = TextReader(tokenizerFile?.let(::openTokenizer))
    val data =
        if (manifest.isLanguageModel) languageRows(items, manifest, texts) else labelledRows(items, manifest, texts)
    if (data.numRows == 0) {
        throw ChainFedException.BadInput("The example source gives no example; give at least one.")
    }
    return data
}

private fun openTokenizer(file: File): Tokenizer =
    try {
        Tokenizer.read(file)
    } catch (error: TokenizerException) {
        throw ChainFedException.BadBundle("The bundle's tokenizer.json cannot be used: ${error.message}", error)
    }

/** A bundle's tokenizer, if it has one, and what is said of texts that it cannot read. */
private class TextReader(
    private val tokenizer: Tokenizer?,
) {
    fun encode(
        text: String,
        where: String,
        addSpecialTokens: Boolean = true,
        maxLength: Int = Int.MAX_VALUE,
    ): Encoding {
        val present =
            tokenizer ?: throw ChainFedException.BadInput(
                "$where is text, but the bundle was exported from a model without a tokenizer; give token ids.",
            )
        return try {
            present.encode(text, addSpecialTokens, maxLength)
        } catch (error: TokenizerException) {
            throw ChainFedException.BadInput("$where cannot be read: ${error.message}", error)
        }
    }
}

private fun placeOf(index: Int): String = "Item ${index + 1} of the example source"

private suspend fun labelledRows(
    items: Flow<TrainingItem>,
    manifest: Manifest,
    texts: TextReader,
): TokenData {
    val numbers = manifest.task.labels.withIndex().associate { it.value to it.index }
    val rows = IntRows(manifest.seqLen, manifest.padTokenId.toInt())
    val labels = ArrayList<Int>()
    items.withIndex().collect { (number, item) ->
        val example =
            item as? Example ?: throw ChainFedException.BadInput(
                "${placeOf(number)} has no label, which a classifier learns; give an Example.",
            )
        labels += labelNumber(example, numbers, number)
        rows.add(texts.encode(example.text, placeOf(number), maxLength = manifest.seqLen).ids)
    }
    return TokenData(rows.ids(), rows.lengths(), labels.toIntArray(), manifest.seqLen, manifest.batchSize)
}

private fun labelNumber(
    example: Example,
    numbers: Map<String, Int>,
    index: Int,
): Int {
    val number = if (example.labelName == null) example.labelNumber else numbers[example.labelName] ?: -1
    if (number !in 0 until numbers.size) {
        val some = numbers.keys.take(MOST_SHOWN).joinToString() + if (numbers.size > MOST_SHOWN) " ..." else ""
        throw ChainFedException.BadInput(
            "${placeOf(index)} has a label that is none of the bundle's ${numbers.size}; give one of $some.",
        )
    }
    return number
}

private suspend fun languageRows(
    items: Flow<TrainingItem>,
    manifest: Manifest,
    texts: TextReader,
): TokenData {
    val reader = PassageReader(manifest, texts)
    val useful =
        items
            .withIndex()
            .map { (number, item) -> reader.read(item, number).cut(manifest.seqLen) }
            .toList()
            .filter { it.hasTarget }
    if (useful.isEmpty()) {
        throw ChainFedException.BadInput(
            "No passage has a token to predict among its first ${manifest.seqLen}; give other data, or a bundle with " +
                "longer rows.",
        )
    }
    val rows = if (manifest.task.packing) packed(useful, manifest.seqLen) else useful
    val ids = IntRows(manifest.seqLen, manifest.padTokenId.toInt())
    val labels = IntRows(manifest.seqLen, NO_TARGET)
    for (row in rows) {
        ids.add(row.ids)
        labels.add(IntArray(row.ids.size - 1) { if (row.targets[it + 1]) row.ids[it + 1] else NO_TARGET })
    }
    return TokenData(ids.ids(), ids.lengths(), labels.ids(), manifest.seqLen, manifest.batchSize)
}

/** Rows of one width in one array, filled up with [filler]. A row without a value counts as one filler. */
private class IntRows(
    private val width: Int,
    private val filler: Int,
) {
    private var values = IntArray(width * FIRST_ROWS)
    private val counts = ArrayList<Int>()

    fun add(row: IntArray) {
        val start = counts.size * width
        if (start + width > values.size) values = values.copyOf(2 * values.size)
        values.fill(filler, start, start + width)
        row.copyInto(values, start, 0, minOf(row.size, width))
        counts += minOf(row.size, width).coerceAtLeast(1)
    }

    fun ids(): IntArray = values.copyOf(counts.size * width)

    fun lengths(): IntArray = counts.toIntArray()
}

/** Token ids of a passage, and which of them are targets. */
internal class Tokens(
    val ids: IntArray,
    val targets: BooleanArray,
) {
    /** Whether a token after the first, which is never predicted, is a target. */
    val hasTarget: Boolean get() = (1 until targets.size).any { targets[it] }

    fun cut(length: Int): Tokens = if (ids.size <= length) this else Tokens(ids.copyOf(length), targets.copyOf(length))
}

/** Rows one after the other as long as the next one fits whole; the first token of each is no target. */
internal fun packed(
    rows: List<Tokens>,
    seqLen: Int,
): List<Tokens> {
    val full = ArrayList<Tokens>()
    var ids = IntArray(0)
    var targets = BooleanArray(0)
    for (row in rows) {
        if (ids.isNotEmpty() && ids.size + row.ids.size > seqLen) {
            full += Tokens(ids, targets)
            ids = IntArray(0)
            targets = BooleanArray(0)
        }
        targets += row.targets.copyOf().also { it[0] = false }
        ids += row.ids
    }
    if (ids.isNotEmpty()) full += Tokens(ids, targets)
    return full
}

/** Passages to tokens. */
private class PassageReader(
    private val manifest: Manifest,
    private val texts: TextReader,
) {
    fun read(
        item: TrainingItem,
        number: Int,
    ): Tokens {
        val where = placeOf(number)
        val passage = if (item is Example) Passage.text(item.text) else item as Passage
        passage.ids?.let { return allTargets(checked(it, where)) }
        passage.text?.let { return allTargets(texts.encode(it, where).ids) }
        val chat =
            manifest.task.chat ?: throw ChainFedException.BadBundle(
                "The bundle says nothing about conversations, but the examples hold one; export it again.",
            )
        val pieces = conversation(chat, passage.messages, where)
        val encoding = texts.encode(pieces.joinToString("") { it.text }, where, addSpecialTokens = chat.specialTokens)
        return Tokens(encoding.ids, inTargets(encoding, pieces))
    }

    private fun checked(
        ids: IntArray,
        where: String,
    ): IntArray {
        val largest = ids.maxOf { it }
        if (largest >= manifest.model.vocabSize) {
            throw ChainFedException.BadInput(
                "$where: token id $largest is not below the vocabulary of ${manifest.model.vocabSize}.",
            )
        }
        return ids
    }

    private fun allTargets(ids: IntArray): Tokens = Tokens(ids, BooleanArray(ids.size) { true })

    /** Whether each token has its first character in a piece that is to be predicted; added tokens have none. */
    private fun inTargets(
        encoding: Encoding,
        pieces: List<Piece>,
    ): BooleanArray {
        val spans = ArrayList<IntRange>()
        var end = 0
        for (piece in pieces) {
            val start = end
            end += piece.text.codePointCount(0, piece.text.length)
            if (piece.isTarget) spans += start until end
        }
        return BooleanArray(encoding.ids.size) { token ->
            val first = encoding.start(token)
            encoding.end(token) > first && spans.any { first in it }
        }
    }
}

private const val FIRST_ROWS = 64
private const val MOST_SHOWN = 5
