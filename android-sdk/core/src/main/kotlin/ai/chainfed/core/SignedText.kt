package ai.chainfed.core

/** What a device signs when it hands in a profile, as `protos/` says. */
internal fun signedProfile(
    assignmentId: String,
    statisticsSha256: String,
    outcome: Outcome.Profile,
): ByteArray =
    signedText(
        listOf("chainfed-profile", assignmentId, statisticsSha256, outcome.numExamples.toString()) +
            outcome.scores.map(::bitsInHexadecimal),
    )

/** The same of an update. */
internal fun signedUpdate(
    assignmentId: String,
    updateSha256: String,
    numExamples: Long,
): ByteArray = signedText(listOf("chainfed-update", assignmentId, updateSha256, numExamples.toString()))

/** The same of an evaluation. */
internal fun signedEvaluation(
    assignmentId: String,
    outcome: Outcome.Evaluation,
): ByteArray =
    signedText(
        listOf(
            "chainfed-evaluation",
            assignmentId,
            outcome.numExamples.toString(),
            outcome.numCorrect.toString(),
            bitsInHexadecimal(outcome.lossSum),
        ),
    )

private fun signedText(lines: List<String>): ByteArray = lines.joinToString("\n").toByteArray()

private fun bitsInHexadecimal(value: Double): String =
    java.lang.Long.toHexString(java.lang.Double.doubleToRawLongBits(value)).padStart(DIGITS, '0')

private const val DIGITS = 16
