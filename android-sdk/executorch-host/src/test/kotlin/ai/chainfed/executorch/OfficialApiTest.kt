package ai.chainfed.executorch

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import org.pytorch.executorch.EValue
import org.pytorch.executorch.ExecuTorchRuntime
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.ExecutorchRuntimeException.ExecutorchInvalidArgumentException
import org.pytorch.executorch.MethodMetadata
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import java.io.File
import kotlin.reflect.KType
import kotlin.reflect.typeOf

/** Our classes are those of executorch-android 1.4.1 as far as they go: an app's classes link against either. */
@Suppress("UnusedParameter")
class OfficialApiTest {
    @Test
    fun `our signatures are the recorded ones`() {
        val recorded =
            References.vectors
                .resolve(
                    "executorch_android_api.txt",
                ).readLines()
                .filterNot { it.startsWith("#") }
        val ours =
            signatures(
                File(
                    Module::class.java.protectionDomain.codeSource.location
                        .toURI(),
                ),
            )
        assertEquals(recorded.sorted(), recorded)
        assertEquals("ours alone", emptyList<String>(), ours.minus(recorded.toSet()).toList())
        assertEquals("recorded alone", emptyList<String>(), recorded.minus(ours))
        assertTrue(recorded.size.toString(), recorded.size > 150)
    }

    // Reflection does not see nullability, which callers in Kotlin compile against.
    @Test
    fun `what can be null in the official API can be null in ours, and nothing else`() {
        assertTrue(firstOf(Module.Companion::load).isMarkedNullable)
        assertTrue(firstOf(ExecuTorchRuntime.Companion::validateFilePath).isMarkedNullable)
        assertFalse(secondOf(ExecuTorchRuntime.Companion::validateFilePath).isMarkedNullable)
        assertTrue(secondOf(ExecutorchRuntimeException.Companion::makeExecutorchException).isMarkedNullable)
        assertTrue(onlyOf(::ExecutorchInvalidArgumentException).isMarkedNullable)
        assertTrue(resultOf(Module.Companion::readLogBufferStatic).isMarkedNullable)
        assertTrue(resultOf(Module::readLogBuffer).isMarkedNullable)
        val never: List<KType> =
            listOf(
                resultOf(Module::getMethods),
                resultOf(Module::getMethodMetadata),
                resultOf(MethodMetadata::name),
                resultOf(MethodMetadata::backends),
                resultOf(ExecutorchRuntimeException::getDetailedError),
                resultOf(EValue::toTensor),
                resultOf(EValue::toStr),
                resultOf(EValue.Companion::optionalNone),
                resultOf(Tensor::shape),
                resultOf(Tensor::getRawDataBuffer),
                resultOf(Tensor::dataAsFloatArray),
                resultOf(ExecuTorchRuntime.Companion::getRegisteredOps),
            )
        assertEquals(emptyList<KType>(), never.filter { it.isMarkedNullable })
    }

    private inline fun <reified R> resultOf(noinline f: () -> R): KType = typeOf<R>()

    private inline fun <reified A, reified R> resultOf(noinline f: (A) -> R): KType = typeOf<R>()

    private inline fun <reified A, reified B, reified R> resultOf(noinline f: (A, B) -> R): KType = typeOf<R>()

    private inline fun <reified A, reified B, reified C, reified R> resultOf(noinline f: (A, B, C) -> R): KType =
        typeOf<R>()

    private inline fun <reified A, R> onlyOf(noinline f: (A) -> R): KType = typeOf<A>()

    private inline fun <reified A, B, R> firstOf(noinline f: (A, B) -> R): KType = typeOf<A>()

    private inline fun <reified A, B, C, R> firstOf(noinline f: (A, B, C) -> R): KType = typeOf<A>()

    private inline fun <A, reified B, R> secondOf(noinline f: (A, B) -> R): KType = typeOf<B>()
}
