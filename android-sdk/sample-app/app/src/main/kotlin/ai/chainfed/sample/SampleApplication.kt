package ai.chainfed.sample

import ai.chainfed.android.ChainFed
import ai.chainfed.core.ExampleSource
import android.app.Application

/** Configures ChainFed here, because Android may start the process for the work alone, without any screen. */
class SampleApplication : Application() {
    /** The app's one way to federated training. */
    val chainFed: ChainFed by lazy {
        val notes = BundledNotes(assets)
        ChainFed.configure(this) {
            coordinator(getString(R.string.coordinator))
            examples { ExampleSource.text(notes.read("train.jsonl"), notes.read("test.jsonl")) }
            policy {
                idle()
                batteryAbove(30)
                storage(500.megabytes)
            }
        }
    }

    override fun onCreate() {
        super.onCreate()
        chainFed
    }
}
