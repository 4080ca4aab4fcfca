package ai.chainfed.build

import org.junit.Assert.assertEquals
import org.junit.Test

class CoverageTest {
    private val names = "GROUP,CLASS,BRANCH_MISSED,BRANCH_COVERED,LINE_MISSED,LINE_COVERED"

    @Test
    fun `shares are of all classes together`() {
        val found = coverageOf(listOf(names, "g,A,1,0,0,10", "g,B,1,2,30,0", ""))
        assertEquals(25.0, found.lines, 1e-9)
        assertEquals(50.0, found.branches, 1e-9)
    }

    @Test
    fun `without branches all of them were run through`() {
        assertEquals(100.0, coverageOf(listOf(names, "g,A,0,0,1,1")).branches, 0.0)
    }
}
