package org.pytorch.executorch

/** A method's name, and the backends that it hands parts of itself to. */
public class MethodMetadata internal constructor(
    public val name: String,
    public val backends: Array<String>,
)
