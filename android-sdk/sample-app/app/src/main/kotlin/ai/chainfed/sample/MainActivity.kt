package ai.chainfed.sample

import ai.chainfed.android.ChainFed
import ai.chainfed.android.ChainFedStatus
import ai.chainfed.android.ChainFedStatus.State
import ai.chainfed.android.WaitReason
import android.app.Activity
import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.Switch
import android.widget.TextView
import android.widget.Toast
import java.io.Closeable
import java.util.concurrent.CompletableFuture
import java.util.concurrent.Executor

/** The one screen: consent, what ChainFed is doing and has done, and a way to have it all deleted. */
class MainActivity : Activity() {
    private val chainFed: ChainFed
        get() = (application as SampleApplication).chainFed
    private val mainThread = Executor { runOnUiThread(it) }
    private var watching: Closeable? = null

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.main)
        // The status alone moves the switch: so it shows what holds, also when the app was closed in between.
        val consent = view<Switch>(R.id.consent)
        consent.isSaveEnabled = false
        consent.setOnClickListener { report(if (consent.isChecked) chainFed.enable() else chainFed.disable(), null) }
        view<Button>(R.id.delete).setOnClickListener {
            report(chainFed.disable(deleteData = true), R.string.data_deleted)
        }
    }

    override fun onStart() {
        super.onStart()
        watching = chainFed.addStatusListener(mainThread, ::show)
    }

    override fun onStop() {
        watching?.close()
        super.onStop()
    }

    private fun show(status: ChainFedStatus) {
        view<Switch>(R.id.consent).isChecked = isAgreed(status.state)
        text(R.id.state, describe(status.state))
        text(R.id.rounds, status.roundsDone.toString())
        text(R.id.memory, getString(R.string.memory_value, megabytes(status.peakMemoryBytes)))
        text(R.id.traffic, getString(R.string.traffic_value, megabytes(status.bytesDown), megabytes(status.bytesUp)))
        text(R.id.error, status.lastError?.message ?: getString(R.string.no_error))
    }

    private fun isAgreed(state: State): Boolean {
        val isEnding = state is State.Waiting && state.reason == WaitReason.ENDING
        return state != State.Disabled && !isEnding
    }

    private fun describe(state: State): String =
        when (state) {
            State.Disabled -> getString(R.string.state_disabled)

            is State.Waiting -> getString(R.string.state_waiting, state.message)

            is State.Working ->
                getString(
                    R.string.state_working,
                    state.round,
                    state.kind.name.lowercase(),
                    state.progress,
                )

            is State.Finished -> getString(R.string.state_finished, state.reason)

            is State.Failed -> getString(R.string.state_failed, state.error.message)
        }

    /**
     * Tells the user when [change] has failed or, where there is something to say, when it is done. A switch that was
     * moved in vain goes back.
     */
    private fun report(
        change: CompletableFuture<Void?>,
        done: Int?,
    ) {
        change.whenCompleteAsync(
            { _, failure ->
                if (failure != null) show(chainFed.status.value)
                val message =
                    if (failure != null) getString(R.string.not_done, failure.message) else done?.let(::getString)
                if (message != null) Toast.makeText(this, message, Toast.LENGTH_LONG).show()
            },
            mainThread,
        )
    }

    private fun <T : View> view(id: Int): T = checkNotNull(findViewById(id)) { "The layout has no such view." }

    private fun text(
        id: Int,
        value: String,
    ) {
        view<TextView>(id).text = value
    }

    private fun megabytes(bytes: Long): Double = bytes / 1e6
}
