package ai.chainfed.core

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.asFlow
import kotlinx.coroutines.flow.catch
import kotlinx.coroutines.flow.count

/** Something that a device learns from. Nothing of it is ever logged, or leaves the device. */
public sealed class TrainingItem

/**
 * A text and its label, for a classifier.
 *
 * @property label the label's name as the bundle has it, or its number in decimal.
 */
public class Example private constructor(
    public val text: String,
    internal val labelName: String?,
    internal val labelNumber: Int,
) : TrainingItem() {
    /** [label]: one of the bundle's labels by name. */
    public constructor(text: String, label: String) : this(text, label, -1)

    /** [label]: one of the bundle's labels by number, from 0. */
    public constructor(text: String, label: Int) : this(text, null, label)
}

/** Who speaks in a conversation. */
public enum class Role { SYSTEM, USER, ASSISTANT }

/** One turn of a conversation. */
public class Message(
    public val role: Role,
    public val content: String,
)

/** What a language model learns from: a text, a conversation of which the answers are learnt, or token ids. */
public class Passage private constructor(
    internal val text: String?,
    internal val messages: List<Message>,
    internal val ids: IntArray?,
) : TrainingItem() {
    public companion object {
        /** Every token of [text] is learnt. */
        @JvmStatic
        public fun text(text: String): Passage = Passage(text, emptyList(), null)

        /** The assistant's turns are learnt. IllegalArgumentException when there is none. */
        @JvmStatic
        public fun conversation(messages: List<Message>): Passage {
            require(messages.any { it.role == Role.ASSISTANT }) { "A conversation without an answer teaches nothing." }
            return Passage(null, messages.toList(), null)
        }

        /** A conversation of one question and its answer. */
        @JvmStatic
        public fun answer(
            question: String,
            answer: String,
        ): Passage = conversation(listOf(Message(Role.USER, question), Message(Role.ASSISTANT, answer)))

        /**
         * Token ids as they are, all of them learnt. IllegalArgumentException when there is none or one is negative.
         */
        @JvmStatic
        public fun ids(ids: IntArray): Passage {
            val areIds = ids.isNotEmpty() && ids.all { it >= 0 }
            require(areIds) { "Token ids are whole numbers from 0, at least one of them." }
            return Passage(null, emptyList(), ids.copyOf())
        }
    }
}

/**
 * Where a device's examples come from: cold flows that give the same items, in the same order, every time they are
 * collected while an assignment is under way. They are collected on a background thread, once to be counted and once
 * for each bundle; when items have changed in between, the work begins anew. What a flow throws ends the attempt as
 * [ChainFedException.BadInput], which tells only the exception's type.
 *
 * @property training what the device trains on.
 * @property heldOut what evaluations are counted on; null where the device evaluates nothing.
 */
public class ExampleSource private constructor(
    training: Flow<TrainingItem>,
    heldOut: Flow<TrainingItem>?,
) {
    internal val training: Flow<TrainingItem> = guarded(training)
    internal val heldOut: Flow<TrainingItem>? = heldOut?.let(::guarded)

    internal suspend fun numTraining(): Long = training.count().toLong()

    internal suspend fun numHeldOut(): Long = heldOut?.count()?.toLong() ?: 0

    /** What comes of the app's own data access has a message that may hold a part of an example. */
    private fun guarded(items: Flow<TrainingItem>): Flow<TrainingItem> =
        items.catch { error ->
            throw error as? ChainFedException ?: ChainFedException.BadInput(
                "The example source failed with ${error.javaClass.name}; look into the app's examples.",
            )
        }

    public companion object {
        /** Labelled texts for a classifier. */
        @JvmStatic
        @JvmOverloads
        public fun text(
            training: Flow<Example>,
            heldOut: Flow<Example>? = null,
        ): ExampleSource = ExampleSource(training, heldOut)

        /** The same of collections, which are read anew each time. */
        @JvmStatic
        @JvmOverloads
        public fun text(
            training: Iterable<Example>,
            heldOut: Iterable<Example>? = null,
        ): ExampleSource = ExampleSource(training.asFlow(), heldOut?.asFlow())

        /** Texts, conversations or token ids for a language model. */
        @JvmStatic
        @JvmOverloads
        public fun passages(
            training: Flow<Passage>,
            heldOut: Flow<Passage>? = null,
        ): ExampleSource = ExampleSource(training, heldOut)

        /** The same of collections, which are read anew each time. */
        @JvmStatic
        @JvmOverloads
        public fun passages(
            training: Iterable<Passage>,
            heldOut: Iterable<Passage>? = null,
        ): ExampleSource = ExampleSource(training.asFlow(), heldOut?.asFlow())

        /** Items of either kind; a language model takes a labelled text as a text. */
        @JvmStatic
        @JvmOverloads
        public fun items(
            training: Flow<TrainingItem>,
            heldOut: Flow<TrainingItem>? = null,
        ): ExampleSource = ExampleSource(training, heldOut)
    }
}
