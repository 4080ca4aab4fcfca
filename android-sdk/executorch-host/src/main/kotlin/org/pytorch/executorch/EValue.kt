package org.pytorch.executorch

/** One input or output of a program. The `to...` methods throw IllegalStateException when it is something else. */
public class EValue private constructor(
    private val value: Any?,
) {
    public val isNone: Boolean get() = value == null
    public val isTensor: Boolean get() = value is Tensor
    public val isBool: Boolean get() = value is Boolean
    public val isInt: Boolean get() = value is Long
    public val isDouble: Boolean get() = value is Double
    public val isString: Boolean get() = value is String

    public fun toTensor(): Tensor = of()

    public fun toBool(): Boolean = of()

    public fun toInt(): Long = of()

    public fun toDouble(): Double = of()

    public fun toStr(): String = of()

    private inline fun <reified T : Any> of(): T =
        checkNotNull(value as? T) {
            "this EValue holds ${value?.javaClass?.simpleName ?: "nothing"}, not a ${T::class.java.simpleName}"
        }

    public companion object {
        @JvmStatic
        public fun optionalNone(): EValue = EValue(null)

        @JvmStatic
        public fun from(tensor: Tensor): EValue = EValue(tensor)

        @JvmStatic
        public fun from(value: Boolean): EValue = EValue(value)

        @JvmStatic
        public fun from(value: Long): EValue = EValue(value)

        @JvmStatic
        public fun from(value: Double): EValue = EValue(value)

        @JvmStatic
        public fun from(value: String): EValue = EValue(value)
    }
}
