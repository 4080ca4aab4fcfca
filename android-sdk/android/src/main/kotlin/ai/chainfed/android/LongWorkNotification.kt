package ai.chainfed.android

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.content.Context
import android.content.pm.ServiceInfo
import android.os.Build
import androidx.work.ForegroundInfo

/** The notification of long work; made by a [NotificationBuilder]. Immutable. */
public class LongWorkNotification internal constructor(
    private val id: Int,
    private val channelId: String,
    private val channelName: String,
    private val title: String,
    private val text: String,
    private val icon: Int,
) {
    /** What Android wants to know of work in the foreground: a transfer and processing of data. Makes the channel. */
    internal fun foregroundInfo(context: Context): ForegroundInfo {
        context
            .getSystemService(NotificationManager::class.java)
            ?.createNotificationChannel(NotificationChannel(channelId, channelName, NotificationManager.IMPORTANCE_LOW))
        val notification =
            Notification
                .Builder(context, channelId)
                .setContentTitle(title)
                .setContentText(text)
                .setSmallIcon(icon)
                .setOngoing(true)
                .setCategory(Notification.CATEGORY_PROGRESS)
                .build()
        if (Build.VERSION.SDK_INT < Build.VERSION_CODES.Q) return ForegroundInfo(id, notification)
        return ForegroundInfo(id, notification, ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC)
    }
}

/**
 * Builds a [LongWorkNotification]; every function returns the builder. For one thread. From Android 13 on it is seen
 * only when the app has asked for `POST_NOTIFICATIONS`; the work is the same without.
 */
public class NotificationBuilder {
    private var id = DEFAULT_ID
    private var channelId = "chainfed"
    private var channelName = "Learning on this device"
    private var title = "Learning on this device"
    private var text = "What you wrote stays here."
    private var icon = android.R.drawable.stat_notify_sync

    /** Its channel: [id] among the app's, and the [name] that the user sees in the settings. */
    public fun channel(
        id: String,
        name: String,
    ): NotificationBuilder =
        apply {
            channelId = id
            channelName = name
        }

    /** Its number among the app's notifications; not 0. */
    public fun id(id: Int): NotificationBuilder {
        require(id != 0) { "id(0): Android takes no notification with this number." }
        return apply { this.id = id }
    }

    /** Its first line. */
    public fun title(title: String): NotificationBuilder = apply { this.title = title }

    /** Its second line. */
    public fun text(text: String): NotificationBuilder = apply { this.text = text }

    /** Its small icon, a drawable's number. */
    public fun icon(drawable: Int): NotificationBuilder = apply { icon = drawable }

    /** The notification. */
    public fun build(): LongWorkNotification = LongWorkNotification(id, channelId, channelName, title, text, icon)

    private companion object {
        const val DEFAULT_ID = 0x43_46
    }
}
