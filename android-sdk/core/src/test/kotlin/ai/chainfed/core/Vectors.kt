package ai.chainfed.core

import ai.chainfed.json.JsonList
import ai.chainfed.json.JsonNumber
import ai.chainfed.json.JsonObject
import ai.chainfed.json.JsonString
import ai.chainfed.json.JsonValue
import ai.chainfed.json.readJson
import java.io.File

/** The vectors that every language reads. */
internal object Vectors {
    val folder = File(System.getProperty("chainfed.vectors"))

    fun read(name: String): JsonObject = readJson(File(folder, name).readBytes()) as JsonObject
}

internal operator fun JsonValue.get(key: String): JsonValue = (this as JsonObject).members.getValue(key)

internal fun JsonValue.list(): List<JsonValue> = (this as JsonList).values

internal fun JsonValue.string(): String = (this as JsonString).value

internal fun JsonValue.long(): Long = (this as JsonNumber).asLong!!

/** A 64-bit integer that is written as text, unsigned. */
internal fun JsonValue.unsigned(): Long = java.lang.Long.parseUnsignedLong(string())

internal fun JsonValue.ints(): IntArray = list().map { it.long().toInt() }.toIntArray()

internal fun JsonValue.floats(): FloatArray = list().map { it.number().toFloat() }.toFloatArray()

internal fun bytesOfHex(hex: String): ByteArray = hex.chunked(2).map { it.toInt(16).toByte() }.toByteArray()
