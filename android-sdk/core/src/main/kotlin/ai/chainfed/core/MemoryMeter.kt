package ai.chainfed.core

import java.io.Closeable
import java.io.File
import java.io.IOException
import kotlin.concurrent.thread

/**
 * The peak of this process's memory while it is open, over what it was at first; read 40 times a second, so that a peak
 * between two readings is missed: reading oftener would cost more than a hundredth of the work. 0 where the system does
 * not tell (it is Linux, and Android, that do).
 */
internal class MemoryMeter : Closeable {
    private val idle = read()
    private val lock = Any()
    private var anonymous = idle.first
    private var resident = idle.second

    @Volatile private var open = true

    private val watcher =
        thread(name = "chainfed-memory", isDaemon = true) {
            while (open) {
                look()
                Thread.sleep(INTERVAL_MILLIS)
            }
        }

    /** Highest anonymous memory so far over the idle level, bytes. */
    val peakAnonymousBytes: Long
        get() {
            look()
            return synchronized(lock) { anonymous - idle.first }
        }

    /** The same with the pages of mapped files. */
    val peakResidentBytes: Long
        get() {
            look()
            return synchronized(lock) { resident - idle.second }
        }

    override fun close() {
        open = false
        watcher.join()
    }

    private fun look() {
        val (own, all) = read()
        synchronized(lock) {
            anonymous = maxOf(anonymous, own)
            resident = maxOf(resident, all)
        }
    }

    private fun read(): Pair<Long, Long> {
        val fields = HashMap<String, Long>()
        try {
            File(STATUS).forEachLine { line ->
                if (line.startsWith("Rss")) {
                    val (name, value) = line.split(':')
                    fields[name] = value.trim().substringBefore(' ').toLong() * KILO
                }
            }
        } catch (_: IOException) {
            return 0L to 0L
        }
        val own = fields["RssAnon"] ?: 0
        return own to own + (fields["RssFile"] ?: 0) + (fields["RssShmem"] ?: 0)
    }

    private companion object {
        const val STATUS = "/proc/self/status"
        const val INTERVAL_MILLIS = 25L
        const val KILO = 1024L
    }
}
