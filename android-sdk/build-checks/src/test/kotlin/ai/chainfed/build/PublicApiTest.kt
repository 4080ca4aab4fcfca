package ai.chainfed.build

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

class PublicApiTest {
    @Test
    fun `what is internal or private is not public`() {
        val dump = publicApi(File("target/classes"))
        assertTrue(dump, "public final class ai/chainfed/build/PublicApiKt {\n" in dump)
        assertTrue(dump, "\tpublic static final fun main ([Ljava/lang/String;)V\n" in dump)
        assertFalse(dump, "difference" in dump)
    }

    @Test
    fun `a difference names the class of each member that came or went`() {
        val before = "public final class a/B : c/D {\n\tpublic fun one ()V\n\tpublic fun two ()V\n}\n\n$OTHER"
        val after = "public final class a/B : c/D {\n\tpublic fun two ()V\n\tpublic fun two (I)V\n}\n\n$OTHER"
        assertEquals(listOf("- a/B: public fun one ()V", "+ a/B: public fun two (I)V"), difference(before, after))
        assertEquals(emptyList<String>(), difference(before, before))
        assertEquals(listOf("+ public class a/E"), difference("", OTHER))
    }

    private companion object {
        const val OTHER = "public class a/E {\n}\n"
    }
}
