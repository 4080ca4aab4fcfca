package ai.chainfed.executorch

/** A program in native memory: [close] frees it once, whoever calls it first, its owner or the garbage collector. */
internal class LoadedProgram(
    private var address: Long,
) : Runnable {
    /** Whether it is not closed yet. */
    val isOpen: Boolean
        @Synchronized get() = address != 0L

    /** Its address. The caller holds the lock that keeps [close] away while it is used. */
    @Synchronized
    fun address(): Long {
        check(address != 0L) { "Module has been destroyed" }
        return address
    }

    /** Frees the arena, the mapping and everything else. */
    @Synchronized
    fun close() {
        if (address != 0L) NativeRuntime.free(address)
        address = 0L
    }

    override fun run(): Unit = close()
}
