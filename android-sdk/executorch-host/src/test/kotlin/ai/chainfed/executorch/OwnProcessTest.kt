package ai.chainfed.executorch

import org.junit.Assert.assertEquals
import org.junit.Test
import org.pytorch.executorch.Module
import java.io.File
import java.util.concurrent.TimeUnit

/** What only a JVM of its own shows: what it prints, and that it ends. */
class OwnProcessTest {
    @Test
    fun `the JVM's checks of native calls find nothing, and it ends with modules open`() {
        val cases = VectorCase.all().size
        assertEquals("ran $cases\n", run("-Xcheck:jni", "runAll"))
    }

    @Test
    fun `a missing library is one sentence, each time`() {
        val sentence =
            "ExecuTorch's library for this machine is not at /nowhere/lib.so; build android-sdk/executorch-host with " +
                "Maven, or name it with -Dchainfed.executorch.library=PATH.\n"
        assertEquals(sentence.repeat(2), run("-Dchainfed.executorch.library=/nowhere/lib.so", "loadTwice"))
    }

    @Test
    fun `a library that is named is taken`() {
        val built = File(System.getProperty("chainfed.module"), "target/native/libchainfed_executorch.so")
        val copy = File.createTempFile("libchainfed", ".so").apply { deleteOnExit() }
        built.copyTo(copy, overwrite = true)
        assertEquals("ran ${VectorCase.all().size}\n", run("-Dchainfed.executorch.library=$copy", "runAll"))
    }

    /** Everything that a JVM prints which calls a function of this file. */
    private fun run(
        option: String,
        function: String,
    ): String {
        val java = File(System.getProperty("java.home"), "bin/java").path
        val properties = listOf("chainfed.vectors", "chainfed.module").map { "-D$it=${System.getProperty(it)}" }
        val classes = System.getProperty("surefire.test.class.path") ?: System.getProperty("java.class.path")
        val main = "ai.chainfed.executorch.OwnProcessTestKt"
        val printed = File.createTempFile("printed", ".txt").apply { deleteOnExit() }
        val process =
            ProcessBuilder(listOf(java, option) + properties + listOf("-cp", classes, main, function))
                .redirectErrorStream(true)
                .redirectOutput(printed)
                .start()
        if (!process.waitFor(120, TimeUnit.SECONDS)) process.destroyForcibly()
        assertEquals(printed.readText(), 0, process.waitFor())
        return printed.readText()
    }
}

fun main(arguments: Array<String>) {
    when (arguments.single()) {
        "runAll" -> runAll()
        "loadTwice" -> loadTwice()
    }
}

private fun runAll() {
    val outputs =
        VectorCase.all().map { case ->
            val module = Module.load(case.file.path, Module.LOAD_MODE_MMAP, 1)
            check(case.run(module, case.inputs()).isNotEmpty())
            module
        }
    println("ran ${outputs.size}")
}

private fun loadTwice() {
    val path =
        VectorCase
            .all()
            .first()
            .file.path
    repeat(2) {
        try {
            Module.load(path)
        } catch (error: UnsatisfiedLinkError) {
            println(error.message)
        }
    }
}
