package ai.chainfed.sample

import ai.chainfed.core.Example
import android.content.res.AssetManager
import org.json.JSONObject

/** Labelled notes that come with the app, in place of what a user would have written; one JSON object a line. */
class BundledNotes(
    private val assets: AssetManager,
) {
    /** The notes of a file in `assets/examples`. */
    fun read(name: String): List<Example> =
        assets.open("examples/$name").bufferedReader().useLines { lines ->
            lines
                .filter(String::isNotBlank)
                .map(::JSONObject)
                .map { Example(it.getString("text"), it.getString("label")) }
                .toList()
        }
}
