"""The memory plan of a program: what a device holds of its own while it runs it, and what it only maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chainfed.core.manifest import BLOCK_PROGRAM, MemoryPlan, ProgramEntry, TensorSpec

WEIGHT_PREFIXES = ("embeddings.", "layer.", "output.", "lm_head.", "trainable.", "aux.")
STATE_PREFIX = "state."


def tensor_bytes(specs: Iterable[TensorSpec]) -> int:
    """Bytes of tensors."""
    return sum(spec.nbytes for spec in specs)


def is_weight(spec: TensorSpec) -> bool:
    """Whether an input is a weight, frozen or trained: a device maps it from a file."""
    return spec.name.startswith(WEIGHT_PREFIXES) or (spec.name.startswith("window.") and ".layer." in spec.name)


def is_state(spec: TensorSpec) -> bool:
    """Whether an input is optimiser state."""
    return spec.name.startswith(STATE_PREFIX)


def is_mapped(program: str, spec: TensorSpec) -> bool:
    """Whether a device keeps an input in a mapped file.

    Weights, auxiliary adapters and optimiser state lie in files, and so do the hidden states while the prefix passes
    through them.
    """
    passes = program == "pool" or program.startswith(BLOCK_PROGRAM)
    return is_weight(spec) or is_state(spec) or (passes and spec.name == "h")


def plan_memory(program: str, entry: ProgramEntry, measured_peak: int) -> MemoryPlan:
    """The plan of one program.

    Outputs lie in the arena. The workspace is what was measured beyond arena and inputs; optimiser state is
    mapped on today's devices, but is counted whole, because every step writes all of it.

    Args:
        program: the program's name.
        entry: its tensors and its arena.
        measured_peak: peak anonymous bytes of a process that runs it over the idle level, with mapped inputs
            in
            files; 0 where the system does not tell, and then the workspace is taken to be as large as the
            arena.
    """
    optimizer_bytes = tensor_bytes(spec for spec in entry.inputs if is_state(spec))
    io_bytes = tensor_bytes(spec for spec in entry.inputs if not is_mapped(program, spec))
    file_bytes = tensor_bytes(spec for spec in entry.inputs if is_weight(spec))
    workspace_bytes = entry.arena_bytes
    if measured_peak > 0:
        workspace_bytes = max(0, measured_peak - entry.arena_bytes - io_bytes)
    return MemoryPlan(
        anonymous_bytes=entry.arena_bytes + workspace_bytes + optimizer_bytes + io_bytes,
        arena_bytes=entry.arena_bytes,
        workspace_bytes=workspace_bytes,
        optimizer_bytes=optimizer_bytes,
        io_bytes=io_bytes,
        file_bytes=file_bytes,
    )


def larger_plan(first: MemoryPlan, second: MemoryPlan) -> MemoryPlan:
    """The plan of two programs that run one after the other: the larger, with the larger mapped file."""
    larger = max(first, second, key=lambda plan: plan.anonymous_bytes)
    return larger.model_copy(update={"file_bytes": max(first.file_bytes, second.file_bytes)})


def plan_beside(plan: MemoryPlan, beside: MemoryPlan) -> MemoryPlan:
    """The plan of a program while another stays loaded and works on its outputs: what that one allocates is added."""
    added = beside.arena_bytes + beside.workspace_bytes
    return plan.model_copy(
        update={
            "anonymous_bytes": plan.anonymous_bytes + added,
            "arena_bytes": plan.arena_bytes + beside.arena_bytes,
            "workspace_bytes": plan.workspace_bytes + beside.workspace_bytes,
        }
    )


def prefix_plan(plans: Mapping[str, MemoryPlan]) -> MemoryPlan:
    """The plan of what a device does before a window, from the plans of `embed`, `block` and, for a classifier, `pool`.

    They run one after the other, except that features are pooled while the block's program stays loaded.
    """
    prefix = larger_plan(plans["embed"], plans["block"])
    return plan_beside(prefix, plans["pool"]) if "pool" in plans else prefix
