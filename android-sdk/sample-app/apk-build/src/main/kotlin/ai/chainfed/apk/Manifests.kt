package ai.chainfed.apk

import com.android.manifmerger.ManifestMerger2
import com.android.manifmerger.ManifestMerger2.Invoker.Feature
import com.android.manifmerger.ManifestMerger2.MergeType
import com.android.manifmerger.ManifestSystemProperty
import com.android.manifmerger.MergingReport.MergedManifestKind
import com.android.utils.StdLogger
import java.io.File

/** What the build, not the manifest, says of an app. */
class AppIdentity(
    val applicationId: String,
    val minSdk: Int,
    val targetSdk: Int,
)

/** Writes to [into] the manifest of the [app] with what the [libraries] add: permissions, services, providers. */
fun mergeManifests(
    app: File,
    libraries: List<AndroidLibrary>,
    identity: AppIdentity,
    into: File,
) {
    val report =
        ManifestMerger2
            .newMerger(app, StdLogger(StdLogger.Level.WARNING), MergeType.APPLICATION)
            .addLibraryManifests(*libraries.map { it.manifest }.toTypedArray())
            .setNamespace(identity.applicationId)
            .setOverride(ManifestSystemProperty.Document.PACKAGE, identity.applicationId)
            .setOverride(ManifestSystemProperty.UsesSdk.MIN_SDK_VERSION, identity.minSdk.toString())
            .setOverride(ManifestSystemProperty.UsesSdk.TARGET_SDK_VERSION, identity.targetSdk.toString())
            .withFeatures(Feature.REMOVE_TOOLS_DECLARATIONS)
            .merge()
    val merged = report.getMergedDocument(MergedManifestKind.MERGED)
    if (!report.result.isSuccess || merged == null) {
        throw BuildFailure(
            "The manifests do not go together: ${report.loggingRecords.joinToString(" ") { it.message }}",
        )
    }
    into.parentFile.mkdirs()
    into.writeText(merged)
}
