"""The programs of a bundle as pure functions: those that every task has, and the list of all.

B batch, S sequence, D hidden size, A bottleneck.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from chainfed.core.manifest import frozen_block_program
from chainfed.toolchain.adapters import adapter
from chainfed.toolchain.batch_parts import in_parts
from chainfed.toolchain.classification_steps import classification_programs
from chainfed.toolchain.gradient_accumulation import rows_at_once
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
    stored_specs,
)
from chainfed.toolchain.quantization import is_scale
from chainfed.toolchain.widening import gather_rows, narrow_tables
from chainfed.toolchain.window import layer_weights


def build_programs(settings: ProgramSettings) -> dict[str, ProgramDefinition]:
    """Define every program of a bundle: ``embed``, the blocks, and those of the task, by name."""
    of_task = classification_programs if settings.task == "classification" else language_programs
    programs = [embed_program(settings), *block_programs(settings), *of_task(settings)]
    return {program.name: program for program in programs}


def embed_program(settings: ProgramSettings) -> ProgramDefinition:
    """Token ids -> first hidden states."""
    rows = (settings.batch_size, settings.seq_len)
    tokens = (TensorSpec("input_ids", rows, "int64"), TensorSpec("mask", rows))
    inputs = tokens + stored_specs("embeddings.", settings.embedding_tensors)
    return ProgramDefinition("embed", inputs, (hidden(settings),), partial(_embed, settings))


def block_program(settings: ProgramSettings) -> ProgramDefinition:
    """Hidden states -> hidden states: one frozen layer and its adapter."""
    bottleneck = (settings.adapter_dim, settings.family.hidden_size)
    inputs = hidden_and_mask(settings) + stored_specs("layer.", settings.layer_tensors)
    inputs += specs("adapter.", {"down": bottleneck, "up": bottleneck})
    return ProgramDefinition("block", inputs, (hidden(settings),), partial(_block, settings))


def block_programs(settings: ProgramSettings) -> list[ProgramDefinition]:
    """``block``, which serves all layers, or for quantised weights ``block_00`` and so on, which hold a layer each.

    Those are lowered by :mod:`chainfed.toolchain.frozen_block`; their ``compute`` takes the weights as ``block`` does.
    """
    shared = block_program(settings)
    if not settings.blocks_hold_weights:
        return [shared]
    inputs = tuple(spec for spec in shared.inputs if not spec.name.startswith("layer."))
    layers = range(settings.family.num_layers)
    return [replace(shared, name=frozen_block_program(layer), inputs=inputs) for layer in layers]


def _embed(settings: ProgramSettings, tensors: Named) -> Named:
    stored, ids = below(tensors, "embeddings."), tensors["input_ids"]
    weights = {name: tensor for name, tensor in stored.items() if not is_scale(name, stored)}
    for table in narrow_tables(stored):  # only the batch's rows are widened, and they become the table
        weights[table] = gather_rows(stored, table, tensors["input_ids"])
        ids = torch.arange(ids.numel()).view(ids.shape)
    return {"h": settings.family.embed(weights, ids, tensors["mask"])}


def _block(settings: ProgramSettings, tensors: Named) -> Named:
    batched = {name: tensors[name] for name in ("h", "mask")}
    shared = {name: tensor for name, tensor in tensors.items() if name not in batched}
    rows = rows_at_once(settings.batch_size, settings.seq_len, settings.tokens_at_once)
    if settings.blocks_hold_weights:
        rows = settings.batch_size  # constants are put into a graph without a loop
    return {"h": in_parts(partial(_layer_and_adapter, settings), batched, shared, rows)}


def _layer_and_adapter(settings: ProgramSettings, tensors: Named) -> Tensor:
    h = settings.family.layer(layer_weights(tensors, "layer."), tensors["h"], tensors["mask"])
    return adapter(h, tensors["adapter.down"], tensors["adapter.up"])
