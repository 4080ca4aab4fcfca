package ai.chainfed.core

import ai.chainfed.v1.GlobalBranchStatistics
import ai.chainfed.v1.profileTask
import ai.chainfed.v1.trainTask
import ai.chainfed.v1.warmupTask
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

/** Each task, killed after every few batches and steps and inside programs, ends as if nothing had happened. */
class KilledTasksTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val training =
        trainTask {
            firstLayer = 1
            windowSize = 2
            localEpochs = 3
            adapterLr = 0.01f
            headLr = 0.02f
            finalHeadLr = 0.03f
            globalLossWeight = 0.3f
            globalBranchStatistics = GlobalBranchStatistics.GLOBAL_BRANCH_STATISTICS_LAST_LAYER
        }

    @Test
    fun `training of a classifier`() = assertSurvives("encoder") { train(it, training) }

    @Test
    fun `training of a classifier with an output norm`() = assertSurvives("decoder") { train(it, training) }

    @Test
    fun `training of a language model`() = assertSurvives("language") { train(it, training) }

    @Test
    fun `training of the last window`() =
        assertSurvives("encoder") { train(it, training.toBuilder().setFirstLayer(3).build()) }

    @Test
    fun `warm-up`() {
        val task =
            warmupTask {
                headLayers += listOf(0, 2, 4)
                localEpochs = 2
                headLr = 0.1f
            }
        assertSurvives("encoder") { warmUp(it, task) }
    }

    @Test
    fun `profiling of a classifier`() = assertSurvives("encoder") { profile(it, profileTask { maxExamples = 5 }) }

    @Test
    fun `profiling of a language model`() = assertSurvives("language") { profile(it, profileTask { maxExamples = 5 }) }

    @Test
    fun `evaluation of a classifier`() = assertSurvives("decoder") { evaluate(it) }

    @Test
    fun `evaluation of a language model`() = assertSurvives("language") { evaluate(it) }

    private fun assertSurvives(
        name: String,
        task: suspend (Work) -> Outcome,
    ): Unit =
        runBlocking {
            val model = TestModel(name, folder.root)
            val expected = model.withWork("straight", task = task)
            val numRuns = model.runtime.runs.size
            for (kept in listOf(null, KeptDepth(1, File(folder.root, "kept depth"), model.data().numBatches))) {
                val work = "killed ${kept?.depth}"
                model.runtime.runs.clear()
                val kills = runKilled(model, work, kept, task, expected)
                assertTrue("$kills", kills > 4)
                // What a process dies in is done again, and nothing else.
                assertTrue("${model.runtime.runs.size}", model.runtime.runs.size in numRuns..numRuns + 2 * kills)
                assertEquals(tensors("straight"), tensors(work))
            }
        }

    /** Runs the task in one "process" after the other until it ends as [expected]; returns how many were killed. */
    private suspend fun runKilled(
        model: TestModel,
        name: String,
        kept: KeptDepth?,
        task: suspend (Work) -> Outcome,
        expected: Outcome,
    ): Int {
        var kills = 0
        while (true) {
            var checkpoints = 0
            var runs = 0
            // Every second process dies when a program is about to run, the others at a checkpoint.
            model.runtime.beforeRun = { if (kills % 2 == 1 && ++runs == 3) throw Killed() }
            try {
                val outcome =
                    model.withWork(name, kept, { if (kills % 2 == 0 && ++checkpoints == 4) throw Killed() }, task)
                assertEquals(expected, outcome)
                model.runtime.beforeRun = {}
                return kills
            } catch (_: Killed) {
                kills++
            }
        }
    }

    private fun tensors(work: String): List<Byte>? =
        File(folder.root, "$work/tensors").takeIf { it.exists() }?.readBytes()?.asList()
}
