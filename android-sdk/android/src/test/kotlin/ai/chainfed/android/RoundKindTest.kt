package ai.chainfed.android

import ai.chainfed.v1.Assignment.TaskCase
import org.junit.Assert.assertEquals
import org.junit.Test

/** What rounds are for, as assignments name it. */
class RoundKindTest {
    @Test fun `every task that there is has its kind, and what is none has none`() {
        val kinds = TaskCase.entries.associateWith { roundKindOf(it.name.lowercase()) }

        assertEquals(null, kinds[TaskCase.TASK_NOT_SET])
        assertEquals(RoundKind.entries.toSet(), kinds.values.filterNotNull().toSet())
        assertEquals(TaskCase.entries.size - 1, kinds.values.filterNotNull().size)
        assertEquals(null, roundKindOf("a task of a later version"))
    }
}
