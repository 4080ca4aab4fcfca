package ai.chainfed.executorch

import java.io.File
import java.lang.reflect.Executable
import java.lang.reflect.Field
import java.lang.reflect.Method
import java.lang.reflect.Modifier

/** What a caller's class file can refer to in [folder]'s classes of `org.pytorch.executorch`: a line each, as javap. */
internal fun signatures(folder: File): Set<String> =
    folder
        .resolve("org/pytorch/executorch")
        .listFiles { it -> it.isFile }!!
        .map { Class.forName("org.pytorch.executorch." + it.name.removeSuffix(".class")) }
        .filter { Modifier.isPublic(it.modifiers) && !it.isSynthetic }
        .flatMap { listOf(signature(it)) + members(it) }
        .toSortedSet()

private const val SHOWN =
    Modifier.PUBLIC or Modifier.PROTECTED or Modifier.STATIC or Modifier.FINAL or Modifier.ABSTRACT

private fun members(type: Class<*>): List<String> =
    type.declaredFields.filter { shown(it.modifiers, it.isSynthetic, it.name) }.map(::signature) +
        type.declaredConstructors
            .filter {
                shown(
                    it.modifiers,
                    it.isSynthetic,
                    it.name,
                )
            }.map { signature(it, type.name) } +
        type.declaredMethods.filter { shown(it.modifiers, it.isSynthetic, it.name) }.map(::signature)

// Kotlin calls functions with default arguments through a synthetic method; nothing calls the other synthetic ones.
private fun shown(
    modifiers: Int,
    synthetic: Boolean,
    name: String,
): Boolean =
    (Modifier.isPublic(modifiers) || Modifier.isProtected(modifiers)) && (!synthetic || name.endsWith("\$default"))

private fun modifiers(given: Int): String = Modifier.toString(given and SHOWN).let { if (it.isEmpty()) it else "$it " }

private fun signature(type: Class<*>): String {
    val above =
        type.superclass
            ?.takeUnless { it == Any::class.java }
            ?.let { " extends ${it.typeName}" }
            .orEmpty()
    val beside = type.interfaces.joinToString { it.typeName }.let { if (it.isEmpty()) it else " implements $it" }
    return "${modifiers(type.modifiers)}class ${type.name}$above$beside"
}

/** A constant with its value, which a caller's class file repeats; a DType with its number. */
private fun signature(field: Field): String {
    val constant = Modifier.isStatic(field.modifiers) && field.name != "Companion"
    val value =
        if (!constant) {
            ""
        } else if (field.isEnumConstant) {
            " = " + field.type.getField("jniCode").getInt(field.get(null))
        } else {
            " = " + field.get(null)
        }
    return "${modifiers(field.modifiers)}${field.type.typeName} ${field.declaringClass.name}.${field.name}$value"
}

private fun signature(method: Method): String =
    signature(method, "${method.returnType.typeName} ${method.declaringClass.name}.${method.name}")

private fun signature(
    executable: Executable,
    name: String,
): String {
    val types = executable.parameterTypes.map { it.typeName }.toMutableList()
    if (executable.isVarArgs) types += types.removeLast().removeSuffix("[]") + "..."
    return "${modifiers(executable.modifiers)}$name(${types.joinToString(", ")})"
}
