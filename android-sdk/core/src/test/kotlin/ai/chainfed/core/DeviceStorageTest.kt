package ai.chainfed.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

class DeviceStorageTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val state by lazy { File(folder.root, "some/where") }

    @Test
    fun `one device at a time works in a state folder`() {
        DeviceStorage(state).use {
            val refusal = assertThrows(ChainFedException.InUse::class.java) { DeviceStorage(state) }
            assertEquals("Another device works in this state folder; end it or give another folder.", refusal.message)
        }
        DeviceStorage(state).use { assertTrue(it.work.isDirectory && it.cache.isDirectory) }
    }

    @Test
    fun `a folder that cannot be made is refused`() {
        val file = folder.newFile("file")
        val refusal = assertThrows(ChainFedException.BadInput::class.java) { DeviceStorage(File(file, "state")) }
        assertTrue(refusal.message!!, refusal.message!!.startsWith("The state folder cannot be used ("))
    }

    @Test
    fun `the key is made once, kept, and replaced by the one that is wanted`() {
        val made = DeviceStorage(state).use { it.deviceKey(null) }
        assertEquals(32, made.length)
        assertEquals(made, DeviceStorage(state).use { it.deviceKey(null) })
        assertEquals("mine", DeviceStorage(state).use { it.deviceKey("mine") })
        assertEquals("mine", DeviceStorage(state).use { it.deviceKey(null) })
        File(state, "device.json").writeText("{\"device_key\":")
        assertNotEquals("mine", DeviceStorage(state).use { it.deviceKey(null) })
        assertNotEquals(made, DeviceStorage(File(folder.root, "other")).use { it.deviceKey(null) })
    }

    @Test
    fun `a key that cannot travel is refused`() {
        DeviceStorage(state).use { storage ->
            for (key in listOf("", "k".repeat(129), "naïve", "a\nb")) {
                val refusal = assertThrows(ChainFedException.BadInput::class.java) { storage.deviceKey(key) }
                assertEquals(
                    "The device key is not 1 to 128 printable ASCII characters; give another one.",
                    refusal.message,
                )
            }
            assertEquals("k".repeat(128), storage.deviceKey("k".repeat(128)))
        }
    }

    @Test
    fun `only the assignment's own work is kept`() {
        DeviceStorage(state).use { storage ->
            for (name in listOf("one", "two")) File(storage.work, "$name/deep").mkdirs()
            storage.forgetOtherWork("two")
            assertEquals(listOf("two"), storage.work.list()!!.asList())
            storage.forgetOtherWork("")
            assertEquals(0, storage.work.list()!!.size)
        }
    }

    @Test
    fun `a kept depth takes the place of the older ones of its role`() {
        DeviceStorage(state).use { storage ->
            for (name in listOf("train-a", "train-b", "test-a")) File(storage.cache, name).writeText(name)
            storage.keepInCache("train", File(storage.cache, "train-c"))
            assertEquals(3, storage.cache.list()!!.size)
            storage.keepInCache("train", File(storage.cache, "train-b"))
            assertEquals(setOf("train-b", "test-a"), storage.cache.list()!!.toSet())
        }
    }
}
