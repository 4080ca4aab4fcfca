package ai.chainfed.testing

import ai.chainfed.v1.AbandonReason
import ai.chainfed.v1.UpdateMetrics

/** Something that a device told an [InMemoryCoordinator]. */
public sealed class Heard {
    /** Which device. */
    public abstract val deviceId: String

    /** A device made itself known; [token] and [publicKey] as it gave them. */
    public class Enrolment(
        override val deviceId: String,
        public val model: String,
        public val token: String,
        public val publicKey: ByteArray,
    ) : Heard()

    /** A device asked for work and said what it has. */
    public class CheckIn(
        override val deviceId: String,
        public val memoryBudgetBytes: Long,
        public val numTraining: Long,
        public val numHeldOut: Long,
    ) : Heard()

    /** A device was given an assignment; the same id stands here again when it asked again before it was done. */
    public class Assigned(
        override val deviceId: String,
        public val assignmentId: String,
    ) : Heard()

    /** A profile. */
    public class Profile(
        override val deviceId: String,
        public val assignmentId: String,
        public val scores: List<Double>,
    ) : Heard()

    /** An update: [tensors] is the safetensors file. */
    public class Update(
        override val deviceId: String,
        public val assignmentId: String,
        public val metrics: UpdateMetrics,
        public val tensors: ByteArray,
    ) : Heard()

    /** An evaluation's counts. */
    public class Evaluation(
        override val deviceId: String,
        public val assignmentId: String,
        public val numExamples: Long,
        public val numCorrect: Long,
        public val lossSum: Double,
    ) : Heard()

    /** An assignment that was given back. */
    public class Abandonment(
        override val deviceId: String,
        public val assignmentId: String,
        public val reason: AbandonReason,
        public val detail: String,
    ) : Heard()
}
