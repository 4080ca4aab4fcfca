package ai.chainfed.executorch

import java.io.File
import java.security.MessageDigest

/** Where the tests find things: the vectors, and what `references.py` writes. */
internal object References {
    val vectors = File(System.getProperty("chainfed.vectors"))

    private val module = File(System.getProperty("chainfed.module"))
    private val target = module.resolve("target")
    private val script = module.resolve("src/test/python/references.py")

    /** What `references.py` wrote; it runs again only when the script, the vectors or the native library changed. */
    val folder: File by lazy {
        val out = target.resolve("references")
        val done = out.resolve("done")
        val stamp = stamp()
        if (!done.isFile || done.readText() != stamp) {
            done.delete()
            run(listOf(python(), script.path, vectors.path, out.path))
            done.writeText(stamp)
        }
        out
    }

    fun program(name: String): String = folder.resolve("$name.pte").path

    private fun stamp(): String {
        val sources =
            vectors
                .resolve("bundles")
                .walk()
                .filter { it.isFile }
                .sorted() + script
        val digest = MessageDigest.getInstance("SHA-256")
        sources.forEach { digest.update(it.readBytes()) }
        digest.update(target.resolve("native/libchainfed_executorch.so.stamp").readBytes())
        return digest.digest().joinToString("") { "%02x".format(it) }
    }

    // As build_shim.sh chooses it.
    private fun python(): String =
        System.getProperty("chainfed.python").orEmpty().ifEmpty {
            System.getenv("CHAINFED_PYTHON") ?: module.resolve("../../.venv/bin/python").path
        }

    private fun run(command: List<String>) {
        val process = ProcessBuilder(command).redirectErrorStream(true).start()
        val said = process.inputStream.bufferedReader().readText()
        check(process.waitFor() == 0) { "$command failed:\n$said" }
    }
}
