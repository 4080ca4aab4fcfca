package ai.chainfed.sample

import android.os.Looper
import android.view.View
import android.widget.Button
import android.widget.Switch
import android.widget.TextView
import androidx.work.Configuration
import androidx.work.impl.WorkManagerImpl
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.shadows.ShadowToast
import java.io.File
import java.security.Provider
import java.security.Security

/** The screen over the published SDK, on Robolectric's Android. */
@RunWith(RobolectricTestRunner::class)
class MainActivityTest {
    private val application = RuntimeEnvironment.getApplication()
    private val activity by lazy { Robolectric.buildActivity(MainActivity::class.java).setup().get() }
    private val consent by lazy { view<Switch>(R.id.consent) }
    private val stored = File(application.noBackupFilesDir, "chainfed")

    /** Robolectric lacks the Android key store, in which ChainFed has its signing key: here, one in memory. */
    @Before
    fun addKeyStore() {
        Security.addProvider(KeyStoreInMemory())
    }

    @After
    fun removeKeyStore() = Security.removeProvider(KeyStoreInMemory.NAME)

    /** On a device a content provider does this before the app starts; Robolectric starts none by itself. */
    @Before
    fun startWorkManager() {
        WorkManagerImpl.setDelegate(WorkManagerImpl(application, Configuration.Builder().build()))
    }

    @Test
    fun `nothing runs and nothing is stored before the user agrees`() {
        eventually("the state is shown") { text(R.id.state) == activity.getString(R.string.state_disabled) }
        assertFalse(consent.isChecked)
        assertEquals("0", text(R.id.rounds))
        assertEquals(activity.getString(R.string.memory_value, 0.0), text(R.id.memory))
        assertEquals(activity.getString(R.string.no_error), text(R.id.error))
        assertTrue(stored.walk().none(File::isFile))
    }

    @Test
    fun `opting in shows what it waits for, opting out that it is off`() {
        consent.performClick()
        eventually("it is on") { text(R.id.state) != activity.getString(R.string.state_disabled) }
        assertTrue(consent.isChecked)
        assertTrue(stored.walk().any(File::isFile))
        consent.performClick()
        eventually("it is off") { text(R.id.state) == activity.getString(R.string.state_disabled) }
        assertFalse(consent.isChecked)
    }

    @Test
    fun `a consent that cannot be stored moves the switch back`() {
        assertTrue(File(stored, "consent.json.new/in the way").mkdirs())
        consent.performClick()
        eventually("the user is told") {
            ShadowToast.getTextOfLatestToast()?.startsWith(activity.getString(R.string.not_done, "")) == true
        }
        assertFalse(consent.isChecked)
        assertEquals(activity.getString(R.string.state_disabled), text(R.id.state))
    }

    @Test
    fun `deleting the data opts out and says that they are gone`() {
        consent.performClick()
        eventually("it is on") { text(R.id.state) != activity.getString(R.string.state_disabled) }
        view<Button>(R.id.delete).performClick()
        eventually("the user is told") {
            ShadowToast.getTextOfLatestToast() == activity.getString(R.string.data_deleted)
        }
        eventually("it is off") { text(R.id.state) == activity.getString(R.string.state_disabled) }
        assertFalse(consent.isChecked)
    }

    @Test
    fun `the bundled notes are read`() {
        val notes = BundledNotes(activity.assets)
        assertEquals(56, notes.read("train.jsonl").size)
        assertEquals(16, notes.read("test.jsonl").size)
    }

    private fun <T : View> view(id: Int): T = checkNotNull(activity.findViewById(id))

    private fun text(id: Int) = view<TextView>(id).text.toString()

    /** Lets the main thread work until [condition] holds, at most half a minute. */
    private fun eventually(
        what: String,
        condition: () -> Boolean,
    ) {
        val deadline = System.nanoTime() + PATIENCE_NANOS
        while (!condition()) {
            check(System.nanoTime() < deadline) { "Waited in vain until $what; the state is '${text(R.id.state)}'." }
            shadowOf(Looper.getMainLooper()).idle()
            Thread.yield()
        }
    }

    private companion object {
        const val PATIENCE_NANOS = 30_000_000_000
    }
}

/** Java's own PKCS #12 store by the name that Android has for its key store. */
private class KeyStoreInMemory : Provider(NAME, "1", "a key store for tests") {
    init {
        putService(Service(this, "KeyStore", "AndroidKeyStore", "sun.security.pkcs12.PKCS12KeyStore", null, null))
    }

    companion object {
        const val NAME = "KeyStoreInMemory"
    }
}
