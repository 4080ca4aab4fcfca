package ai.chainfed.executorch

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.pytorch.executorch.EValue
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.ExecutorchRuntimeException.ExecutorchInvalidArgumentException
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import java.io.File
import kotlin.concurrent.thread

/** Whatever is wrong is an exception of the type that a phone throws, and the module works on. */
class ModuleErrorsTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val case = VectorCase.named("encoder/embed-0")
    private val inputs = case.inputs()
    private val right = case.arguments(inputs)

    private fun load(file: File = case.file): Module = Module.load(file.path, Module.LOAD_MODE_MMAP, 1)

    private fun file(data: ByteArray): File = folder.newFile().apply { writeBytes(data) }

    @Test
    fun `a path that names no file is refused`() {
        for (path in listOf(null, "/nowhere/block.pte", folder.root.path)) {
            val error = assertThrows(IllegalArgumentException::class.java) { Module.load(path) }
            assertTrue(error.message!!, error.message!!.startsWith("Cannot load model path: path "))
        }
    }

    @Test
    fun `a file that is no program is refused in every mode`() {
        val program = case.file.readBytes()
        val damaged =
            listOf(ByteArray(0), ByteArray(4096) { it.toByte() }, program.copyOf(program.size / 2), program.copyOf(20))
        for (data in damaged) {
            for (mode in 0..3) {
                val bad = file(data)
                val error =
                    assertThrows(ExecutorchInvalidArgumentException::class.java) { Module.load(bad.path, mode, 1) }
                assertEquals(ExecutorchRuntimeException.INVALID_ARGUMENT, error.errorCode)
                assertTrue(error.message!!, "${bad.path} cannot be loaded (error 0x" in error.message!!)
            }
        }
    }

    @Test
    fun `a wrong number of inputs is refused`() =
        load().use { module ->
            for (given in listOf(emptyArray(), right.copyOf(right.size - 1), right + right.last())) {
                @Suppress("UNCHECKED_CAST")
                val error =
                    assertThrows(
                        ExecutorchInvalidArgumentException::class.java,
                    ) { module.forward(*given as Array<EValue>) }
                assertTrue(error.message!!, "Execution failed for method: forward" in error.message!!)
            }
            assertWorks(module)
        }

    @Test
    fun `an input of another dtype, shape, rank or kind is refused`() =
        load().use { module ->
            val ids = inputs.getValue("input_ids")
            val count = ids.numel().toInt()
            val wrong =
                listOf(
                    EValue.from(Tensor.fromBlob(FloatArray(count), ids.shape())),
                    EValue.from(Tensor.fromBlob(LongArray(count), longArrayOf(count.toLong()))),
                    EValue.from(Tensor.fromBlob(LongArray(count), ids.shape().reversedArray())),
                    EValue.from(Tensor.fromBlob(LongArray(count + 8), longArrayOf(ids.shape()[0] + 1, ids.shape()[1]))),
                    EValue.from(Tensor.fromBlob(LongArray(1), LongArray(17) { 1 })),
                    EValue.from(3L),
                    EValue.from(0.5),
                    EValue.from(true),
                    EValue.from("text"),
                    EValue.optionalNone(),
                )
            for (value in wrong) {
                assertThrows(ExecutorchRuntimeException::class.java) {
                    module.forward(value, *right.copyOfRange(1, right.size))
                }
            }
            assertWorks(module)
        }

    @Test
    fun `an error says what the runtime logged in that call, and in no other`() =
        load().use { module ->
            val wrong = EValue.from(Tensor.fromBlob(FloatArray(1), longArrayOf(1)))
            val error =
                assertThrows(
                    ExecutorchRuntimeException::class.java,
                ) { module.forward(wrong, *right.drop(1).toTypedArray()) }
            assertTrue(error.message!!, "; logged: " in error.message!!)
            assertTrue(error.message!!.endsWith(error.getDetailedError().trimEnd()))
            assertEquals(1, module.readLogBuffer()!!.size)
            assertWorks(module)
            assertEquals(0, module.readLogBuffer()!!.size)
            assertEquals("", error.getDetailedError())
        }

    @Test
    fun `a method that the program has not is refused`() =
        load().use { module ->
            assertArrayEquals(arrayOf("forward"), module.getMethods())
            assertThrows(ExecutorchInvalidArgumentException::class.java) { module.execute("backward", *right) }
            assertThrows(ExecutorchInvalidArgumentException::class.java) { module.loadMethod("backward") }
            assertThrows(IllegalArgumentException::class.java) { module.getMethodMetadata("backward") }
            module.loadMethod("forward")
            assertWorks(module)
        }

    @Test
    fun `a closed module says so, and can be closed again`() {
        val module = load()
        assertWorks(module)
        module.close()
        module.close()
        module.destroy()
        val uses =
            listOf<() -> Unit>(
                { module.forward(*right) },
                { module.execute("forward", *right) },
                { module.loadMethod("forward") },
                { module.getMethods() },
                { module.getMethodMetadata("forward") },
                { module.readLogBuffer() },
            )
        for (use in uses) {
            assertThrows(IllegalStateException::class.java) { use() }
        }
    }

    @Test
    fun `a module that runs cannot be closed`() {
        val row = EValue.from(Tensor.fromBlob(FloatArray(4096), longArrayOf(4096)))
        val refused =
            (1..20).any {
                val module = Module.load(References.program("widen"), Module.LOAD_MODE_MMAP, 1)
                val runner = thread { module.forward(row) }
                while (runner.isAlive &&
                    runner.stackTrace.none { it.methodName == "execute" && it.isNativeMethod }
                ) {
                    Thread.onSpinWait()
                }
                val closed = runCatching { module.close() }
                runner.join()
                closed.exceptionOrNull()?.let { assertTrue(it.toString(), it is IllegalStateException) }
                module.close()
                closed.isFailure
            }
        assertTrue(refused)
    }

    private fun assertWorks(module: Module) {
        val outputs = case.run(module, inputs)
        assertArrayEquals(References.folder.resolve("${case.name}.1.bin").readBytes(), bytes(outputs.values))
    }
}
