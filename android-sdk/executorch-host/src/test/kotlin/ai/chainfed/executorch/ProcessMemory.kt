package ai.chainfed.executorch

import java.io.File

internal const val MIB: Long = 1L shl 20

/** Bytes of this process by a field of /proc/self/status: RssAnon, RssFile, VmLck. */
internal fun memory(field: String): Long =
    File("/proc/self/status")
        .readLines()
        .single { it.startsWith("$field:") }
        .filter(Char::isDigit)
        .toLong() * 1024
