package ai.chainfed.core

import ai.chainfed.json.JsonNumber
import ai.chainfed.v1.ProfileTask
import ai.chainfed.v1.TrainTask
import ai.chainfed.v1.WarmupTask

// The four tasks of a device, each from a prepared Work to its outcome (docs/device.md section 7). Every one of them is
// a pass through the frozen chain and something small after it, and resumes where its journal ends.

private val WINDOW_MEASURES = listOf("loss", "local_loss", "global_loss", "correct")
private val HEAD_MEASURES = listOf("loss", "correct")

/** Trains the adapters of a window, and a classifier's heads with them (Sec. 4.2, 4.3; Eq. 2). */
internal suspend fun train(
    work: Work,
    task: TrainTask,
): Outcome {
    val numLayers = work.bundle.manifest.model.numLayers
    val end = task.firstLayer + task.windowSize - 1
    if (task.firstLayer < 0 || task.windowSize < 1 || end >= numLayers) {
        throw ChainFedException.BadBundle(
            "The window ${task.firstLayer} to $end is not within the bundle's $numLayers layers.",
        )
    }
    val objective = objectiveOf(work)
    val names = objective.trained(task.firstLayer, task.windowSize)
    val steps = work.steps(task.localEpochs)
    val trained =
        Chain(work, work.keptUpTo(task.firstLayer)).use { chain ->
            chain.advanceTo(task.firstLayer)
            work.checkpoint("window ${task.firstLayer} to $end")
            trainWindow(work, task, objective, names, steps, chain.view(task.firstLayer))
        }
    val (loss, localLoss, globalLoss, correct) =
        WINDOW_MEASURES.indices.map { index -> sumInOrder(trained.measured.map { it[index] }) }
    return Outcome.Update(
        numExamples = work.data.numRows.toLong(),
        numSteps = steps.size.toLong(),
        loss = loss / steps.size,
        localLoss = localLoss / steps.size,
        globalLoss = globalLoss / steps.size,
        accuracy = correct / steps.sumOf { objective.numTargets(it).toLong() },
        tensorsSha256 = writeResult(work.journal, changes(trained, work.state, objective.changed(task, names))),
    )
}

private suspend fun trainWindow(
    work: Work,
    task: TrainTask,
    objective: Objective,
    names: Map<String, String>,
    steps: List<IntArray>,
    hidden: HiddenView,
): Trained {
    val name = Manifest.windowProgram(task.windowSize)
    return work.mappings.Scope().use { scope ->
        work.bundle.program(name).use { program ->
            val h = TensorView.allocate(work.hiddenShape)
            val constant =
                work.bundle.output(scope) + objective.constants(task, scope) + auxiliaryAdapters(work, task, scope) +
                    work.bundle.windowWeights(task.firstLayer, task.windowSize, scope) + windowScalars(work, task)
            runSteps(
                work,
                "window",
                program,
                work.bundle.manifest.programs.getValue(name),
                names.mapValues { work.state.programTensor(it.value) },
                steps,
                constant,
                WINDOW_MEASURES,
            ) { rows ->
                val filled = padded(rows, work.data.batchSize)
                hidden.readRows(filled, h)
                mapOf("h" to h, "mask" to work.data.mask(filled)) + objective.targets(rows)
            }
        }
    }
}

private fun windowScalars(
    work: Work,
    task: TrainTask,
): Map<String, TensorView> {
    val isFinal = task.firstLayer + task.windowSize == work.bundle.manifest.model.numLayers
    return mapOf(
        "adapter_lr" to TensorView.scalar(task.adapterLr),
        "global_loss_weight" to TensorView.scalar(if (isFinal) 0f else task.globalLossWeight),
    )
}

/**
 * The adapters after the window as one stack [L - Q, A, D] each of `down` and `up`; none when L = Q. The rest of each
 * is zero: an adapter of zeros changes nothing (Sec. 4.3).
 */
private fun auxiliaryAdapters(
    work: Work,
    task: TrainTask,
    scope: Mappings.Scope,
): Map<String, TensorView> {
    val numLayers = work.bundle.manifest.model.numLayers
    val after = numLayers - task.windowSize
    if (after == 0) return emptyMap()
    val first = task.firstLayer + task.windowSize
    val shape = listOf(after, work.bundle.manifest.bottleneck, work.bundle.manifest.model.hiddenSize)
    val stacks = mapped(work.journal.path("aux"), listOf("aux.down" to shape, "aux.up" to shape), scope)
    stacks.values.forEachIndexed { number, stack ->
        val target = stack.floats()
        for (layer in first until numLayers) target.put(work.state.take(adapterNames(layer)[number]).floats())
        while (target.hasRemaining()) target.put(0f)
    }
    return stacks
}

/** Trains the heads of some layers on pooled features; the layers and adapters stay as they are. */
internal suspend fun warmUp(
    work: Work,
    task: WarmupTask,
): Outcome {
    val layers = task.headLayersList.toList()
    if (layers.isEmpty() || layers.any { it !in 0 until work.bundle.manifest.model.numLayers }) {
        throw ChainFedException.BadBundle("The heads to train, $layers, are not within the bundle's layers.")
    }
    val steps = work.steps(task.localEpochs)
    val measured = ArrayList<List<Double>>()
    val update = LinkedHashMap<String, HeapTensor>()
    Features(work, layers.size).use { features ->
        poolLayers(work, layers, features)
        work.bundle.program("head").use { program ->
            layers.forEachIndexed { index, layer ->
                work.checkpoint("head $layer")
                val trained = trainHead(work, program, layer, steps, task.headLr) { features.rows(index, it) }
                measured += trained.measured
                val (weight, bias) = headNames(layer)
                update += changes(trained, work.state, mapOf("head.weight" to weight, "head.bias" to bias))
            }
        }
    }
    val loss = sumInOrder(measured.map { it[0] })
    val correct = sumInOrder(measured.map { it[1] })
    return Outcome.Update(
        numExamples = work.data.numRows.toLong(),
        numSteps = measured.size.toLong(),
        loss = loss / measured.size,
        localLoss = loss / measured.size,
        globalLoss = 0.0,
        accuracy = correct / (work.data.numRows.toLong() * task.localEpochs * layers.size),
        tensorsSha256 = writeResult(work.journal, update),
    )
}

private suspend fun trainHead(
    work: Work,
    program: Program,
    layer: Int,
    steps: List<IntArray>,
    headLr: Float,
    features: (IntArray) -> TensorView,
): Trained {
    val objective = Classifier(work)
    val (initial, statistics) = work.state.head(layer).entries.partition { it.key.startsWith("head.") }
    return runSteps(
        work,
        "head.$layer",
        program,
        work.bundle.manifest.programs.getValue("head"),
        initial.associate { it.toPair() },
        steps,
        statistics.associate { it.toPair() } + ("head_lr" to TensorView.scalar(headLr)),
        HEAD_MEASURES,
    ) { rows -> mapOf("features" to features(padded(rows, work.data.batchSize))) + objective.targets(rows) }
}

/** Runs the chain to the last of [layers] and keeps the pooled features of each of them. */
private suspend fun poolLayers(
    work: Work,
    layers: List<Int>,
    features: Features,
): Unit =
    work.mappings.Scope().use { scope ->
        work.bundle.program("pool").use { pool ->
            val output = work.bundle.output(scope)
            val keep: OnBatch = { depth, batch, h, mask ->
                val index = layers.indexOf(depth - 1)
                if (index >= 0) features.put(index, batch, pool.run(output + ("h" to h) + ("mask" to mask)))
            }
            Chain(work, work.keptUpTo(layers.minOf { it }), keep).use { chain ->
                chain.advanceTo(layers.maxOf { it } + 1)
            }
        }
    }

/** Predicts with the final head on top of all layers, every label or every target token, and counts. */
internal suspend fun evaluate(work: Work): Outcome {
    val numLayers = work.bundle.manifest.model.numLayers
    val objective = objectiveOf(work)
    val scored =
        Chain(work, work.keptUpTo(numLayers)).use { chain ->
            chain.advanceTo(numLayers)
            val hidden = chain.view(numLayers)
            work.mappings.Scope().use { scope ->
                work.bundle.program("score").use { program ->
                    val feed = work.bundle.output(scope) + objective.scoring(scope)
                    val done = work.journal.find("score").mapTo(ArrayList()) { it.numbers() }
                    val h = TensorView.allocate(work.hiddenShape)
                    for (batch in done.size until work.data.numBatches) {
                        hidden.read(batch, h)
                        val mask = work.data.mask(work.data.storedBatch(batch))
                        val targets = objective.scored(work.data.realRows(batch))
                        done += score(program, feed + ("h" to h) + ("mask" to mask), targets)
                        work.journal.append("score", jsonNumbers(done.last()))
                        work.checkpoint("")
                    }
                    done
                }
            }
        }
    val (loss, correct, count) = (0..2).map { index -> sumInOrder(scored.map { it[index] }) }
    return Outcome.Evaluation(numExamples = count.toLong(), numCorrect = correct.toLong(), lossSum = loss)
}

/** Loss, correct predictions and predictions of a batch. */
private fun score(
    program: Program,
    inputs: Map<String, TensorView>,
    targets: Sequence<Pair<Map<String, TensorView>, Int>>,
): List<Double> {
    var loss = 0.0
    var correct = 0.0
    var count = 0.0
    for ((some, number) in targets) {
        val outputs = program.run(inputs + some)
        loss += outputs.scalar("loss_sum")
        correct += outputs.scalar("correct")
        count += number
    }
    if (!loss.isFinite() || !correct.isFinite()) {
        throw ChainFedException.NotFinite("The loss over held-out examples is not finite; the model has diverged.")
    }
    return listOf(loss, correct, count)
}

/**
 * Scores each layer by token-level linear CKA with the embedding output (Sec. 4.4, Eq. 3); takes its features'
 * statistics.
 */
internal suspend fun profile(
    work: Work,
    task: ProfileTask,
): Outcome {
    val order = permutation(work.data.numRows, SplitMix64(work.seed))
    val sampled = work.over(work.data.select(order.copyOf(minOf(task.maxExamples, order.size))))
    val numLayers = work.bundle.manifest.model.numLayers
    val kept = KeptDepth(0, work.journal.path("embedding_output"), sampled.data.numBatches)
    val statistics = LinkedHashMap<String, HeapTensor>()
    val scores: List<Double>
    if (work.bundle.manifest.isLanguageModel) {
        scores = Chain(sampled, kept).use { layerScores(sampled, it, numLayers) }
    } else {
        Features(sampled, numLayers).use { features ->
            scores = scoresWithFeatures(sampled, kept, features, numLayers)
            val rows = IntArray(sampled.data.numRows) { it }
            val width = work.bundle.manifest.model.hiddenSize
            for (layer in 0 until numLayers) {
                val moments = Moments(features.rows(layer, rows).floats(), rows.size, width)
                statistics["statistics.$layer.mean"] = HeapTensor(listOf(width), moments.mean)
                statistics["statistics.$layer.variance"] = HeapTensor(listOf(width), moments.variance)
            }
        }
    }
    return Outcome.Profile(sampled.data.numRows.toLong(), scores, writeResult(work.journal, statistics))
}

private suspend fun scoresWithFeatures(
    work: Work,
    kept: KeptDepth,
    features: Features,
    numLayers: Int,
): List<Double> =
    work.mappings.Scope().use { scope ->
        work.bundle.program("pool").use { pool ->
            val output = work.bundle.output(scope)
            val keep: OnBatch = { depth, batch, h, mask ->
                if (depth > 0) features.put(depth - 1, batch, pool.run(output + ("h" to h) + ("mask" to mask)))
            }
            Chain(work, kept, keep).use { layerScores(work, it, numLayers) }
        }
    }

/** One journalled score after the other; each is taken while its layer's output is the newest one. */
private suspend fun layerScores(
    work: Work,
    chain: Chain,
    numLayers: Int,
): List<Double> {
    val scores = work.journal.find("score").mapTo(ArrayList()) { it.number() }
    chain.advanceTo(0)
    val first = Centred(HiddenTokens(work, chain.view(0)))
    val firstNorm =
        work.journal.find("embedding_norm").firstOrNull()?.number()
            ?: squaredCrossNorm(first, first).also {
                requireFinite(it, "the embeddings")
                work.journal.append("embedding_norm", JsonNumber.of(it))
            }
    for (layer in scores.size until numLayers) {
        chain.advanceTo(layer + 1)
        val output = Centred(HiddenTokens(work, chain.view(layer + 1)))
        val score = linearCka(squaredCrossNorm(first, output), firstNorm, squaredCrossNorm(output, output))
        requireFinite(score, "layer $layer")
        work.journal.append("score", JsonNumber.of(score))
        scores += score
    }
    return scores
}

private fun requireFinite(
    value: Double,
    what: String,
) {
    if (!value.isFinite()) {
        throw ChainFedException.NotFinite("The output of $what is not finite; the model cannot be profiled.")
    }
}

/** The real tokens' vectors of a depth, a piece for each batch. */
private class HiddenTokens(
    private val work: Work,
    private val hidden: HiddenView,
) : TokenVectors {
    private val h = TensorView.allocate(work.hiddenShape)
    private val values = FloatArray(h.numElements)

    override val width: Int = work.bundle.manifest.model.hiddenSize
    override val numPieces: Int = work.data.numBatches

    override fun piece(index: Int): TokenPiece {
        hidden.read(index, h)
        val source = h.floats()
        val seqLen = work.data.seqLen
        var count = 0
        work.data.realRows(index).forEachIndexed { place, row ->
            val length = work.data.lengths[row]
            (source as java.nio.Buffer).position(place * seqLen * width)
            source.get(values, count * width, length * width)
            count += length
        }
        return TokenPiece(values, count)
    }
}
