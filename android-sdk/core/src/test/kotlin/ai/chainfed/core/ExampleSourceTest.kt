package ai.chainfed.core

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertSame
import org.junit.Assert.assertThrows
import org.junit.Test
import java.io.IOException

/** What comes of an app's data access. */
class ExampleSourceTest {
    private fun failing(error: Exception): Flow<Example> =
        flow {
            emit(Example("a text", 0))
            throw error
        }

    @Test
    fun `a flow that fails is told by the kind of failure alone`() {
        val source = ExampleSource.text(failing(IOException("SECRET-4711")), failing(IOException("SECRET-4711")))
        for (count in listOf(source::numTraining, source::numHeldOut)) {
            val refusal = assertThrows(ChainFedException.BadInput::class.java) { runBlocking { count() } }
            assertEquals(
                "The example source failed with java.io.IOException; look into the app's examples.",
                refusal.message,
            )
            assertFalse("SECRET-4711" in refusal.stackTraceToString())
        }
    }

    @Test
    fun `what the app itself says in the SDK's terms stays`() {
        val said = ChainFedException.BadInput("Item 4 is too long; cut it.")
        val source = ExampleSource.text(failing(said))
        val refusal = assertThrows(ChainFedException.BadInput::class.java) { runBlocking { source.numTraining() } }
        assertEquals(said.message, refusal.message)
    }

    @Test
    fun `failures of whoever collects are not the flow's`() {
        val source = ExampleSource.text(failing(IOException("not reached")))
        assertEquals("a text", runBlocking { (source.training.first() as Example).text })
        val mine = IOException("mine")
        val thrown = runBlocking { runCatching { source.training.collect { throw mine } }.exceptionOrNull() }
        assertSame(mine, thrown)
    }
}
