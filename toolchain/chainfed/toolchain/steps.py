"""The programs of a bundle as pure functions: those that every task has, and the list of all.

B batch, S sequence, D hidden size, A bottleneck.
"""

from __future__ import annotations

from functools import partial

from chainfed.toolchain.adapters import adapter
from chainfed.toolchain.classification_steps import classification_programs
from chainfed.toolchain.language_steps import language_programs
from chainfed.toolchain.programs import (
    Named,
    ProgramDefinition,
    ProgramSettings,
    TensorSpec,
    below,
    hidden,
    hidden_and_mask,
    specs,
)


def build_programs(settings: ProgramSettings) -> dict[str, ProgramDefinition]:
    """Define every program of a bundle: ``embed``, ``block`` and those of the task, by name."""
    of_task = classification_programs if settings.task == "classification" else language_programs
    programs = [embed_program(settings), block_program(settings), *of_task(settings)]
    return {program.name: program for program in programs}


def embed_program(settings: ProgramSettings) -> ProgramDefinition:
    """Token ids -> first hidden states."""
    rows = (settings.batch_size, settings.seq_len)
    tokens = (TensorSpec("input_ids", rows, "int64"), TensorSpec("mask", rows))
    inputs = tokens + specs("embeddings.", settings.family.embedding_shapes)
    return ProgramDefinition("embed", inputs, (hidden(settings),), partial(_embed, settings))


def block_program(settings: ProgramSettings) -> ProgramDefinition:
    """Hidden states -> hidden states: one frozen layer and its adapter."""
    bottleneck = (settings.adapter_dim, settings.family.hidden_size)
    inputs = hidden_and_mask(settings) + specs("layer.", settings.family.layer_shapes)
    inputs += specs("adapter.", {"down": bottleneck, "up": bottleneck})
    return ProgramDefinition("block", inputs, (hidden(settings),), partial(_block, settings))


def _embed(settings: ProgramSettings, tensors: Named) -> Named:
    weights = below(tensors, "embeddings.")
    return {"h": settings.family.embed(weights, tensors["input_ids"], tensors["mask"])}


def _block(settings: ProgramSettings, tensors: Named) -> Named:
    h = settings.family.layer(below(tensors, "layer."), tensors["h"], tensors["mask"])
    return {"h": adapter(h, tensors["adapter.down"], tensors["adapter.up"])}
