"""Which window sizes fit a phone with so much memory, at which batch and length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from chainfed.core.errors import BadInputError
from chainfed.core.manifest import MANIFEST_FILE, Bundle, MemoryPlan, window_program
from chainfed.toolchain.checkpoint import family_of, locate_model, read_model_config
from chainfed.toolchain.export_settings import ExportSettings, program_settings
from chainfed.toolchain.gradient_accumulation import rows_at_once
from chainfed.toolchain.lowering import trace
from chainfed.toolchain.memory_estimate import GraphNeed, estimate_plan, graph_need, with_workspace
from chainfed.toolchain.memory_plan import prefix_plan
from chainfed.toolchain.program_files import measured_programs
from chainfed.toolchain.programs import ProgramSettings
from chainfed.toolchain.steps import build_programs
from chainfed.toolchain.verify import settings_of

Progress = Callable[[str, int, int], None]
"""Called with what is estimated next, how many estimates are done, and how many there are."""
Shape = tuple[int, int]
"""Batch size and sequence length."""

_USUAL_BATCH_SIZES = (1, 4, 8)
_USUAL_LENGTH = 128
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class RoundMemory:
    """What a device needs for a training round with one window size at one shape, in bytes.

    Attributes:
        window_size: Q.
        batch_size: rows.
        seq_len: tokens in a row.
        own_bytes: the device's own (anonymous) memory, the larger of prefix and window.
        mapped_bytes: weights mapped from files while the window runs, which the system can take back.
        measured: whether these are the bundle's own measured plans, not estimates.
    """

    window_size: int
    batch_size: int
    seq_len: int
    own_bytes: int
    mapped_bytes: int
    measured: bool


@dataclass(frozen=True)
class Question:
    """What is asked: programs as an export would make them, over several shapes.

    Attributes:
        settings: the programs, in any shape.
        shapes: batch sizes and lengths.
        bundle: whose measured plans are taken where the shape is its own; None for a model that is not exported yet.
    """

    settings: ProgramSettings
    shapes: tuple[Shape, ...]
    bundle: Bundle | None


def parse_bytes(text: str) -> int:
    """Bytes of an amount such as `200MB`, `1.5GiB` or `64000000`. Raises BadInputError when it is none."""
    found = _AMOUNT.fullmatch(text)
    unit = found.group(2).lower() if found else ""
    if found is None or unit not in _UNITS or float(found.group(1)) == 0:
        raise BadInputError(f"--memory {text!r} is no amount of memory; write it like 200MB or 1.5GiB.")
    return int(float(found.group(1)) * _UNITS[unit])


def ask(
    target: str,
    batch_sizes: Sequence[int] | None = None,
    seq_lens: Sequence[int] | None = None,
    windows: Sequence[int] | None = None,
    adapter_dim: int | None = None,
) -> Question:
    """The question about a bundle, or about a model of which only `config.json` is read.

    Without batch sizes and lengths, a bundle is asked about its own shape and halves of it, and a model about batches
    of 1, 4 and 8 rows of 128 tokens, or of as many as it has positions.

    Raises:
        BadInputError: a size does not fit the model, or `adapter_dim` is given for a bundle.
        BundleError: the bundle is damaged.
        ModelError: there is neither a bundle nor a model.
    """
    if (Path(target) / MANIFEST_FILE).is_file():
        if adapter_dim is not None:
            raise BadInputError(
                "--adapter-dim is for models that are not exported yet; a bundle's adapters have a size."
            )
        bundle = Bundle(Path(target))
        own = settings_of(bundle)
        settings = replace(own, windows=_checked_windows(tuple(windows), own) if windows else own.windows)
        rows, tokens = own.batch_size, own.seq_len
        batch_sizes = batch_sizes or sorted({max(1, rows // 4), max(1, rows // 2), rows})
        seq_lens = seq_lens or sorted({max(2, tokens // 2), tokens})
        return Question(settings, _shapes(settings, batch_sizes, seq_lens), bundle)
    folder = locate_model(target)
    family = family_of(folder, read_model_config(folder))
    lengths = seq_lens or [min(_USUAL_LENGTH, family.max_seq_len)]
    chosen = tuple(windows) if windows else None
    exported = ExportSettings(
        target, ("0", "1"), Path(), seq_len=min(lengths), adapter_dim=adapter_dim or 32, windows=chosen
    )
    settings = program_settings(exported, family)
    return Question(settings, _shapes(settings, batch_sizes or _USUAL_BATCH_SIZES, lengths), None)


def answer(question: Question, on_progress: Progress | None = None) -> list[RoundMemory]:
    """What each window size needs at each shape, by length, batch size and window size.

    A bundle's own shape has its measured plans. Where there is a bundle, estimates of other shapes are scaled by how
    the estimate of its own shape compares with what was measured.
    """
    estimates = _Estimates(question, on_progress)
    return [memory for shape in question.shapes for memory in estimates.rounds(shape)]


class _Estimates:
    """Estimated plans by program and shape, each made once."""

    def __init__(self, question: Question, on_progress: Progress | None) -> None:
        self._question = question
        self._on_progress = on_progress
        self._plans: dict[tuple[str, Shape], MemoryPlan] = {}
        self._needs: dict[tuple[str, Shape], GraphNeed] = {}
        self._done = 0
        self._total = len(set(self._needed()))

    def rounds(self, shape: Shape) -> Iterator[RoundMemory]:
        """Every window size at one shape."""
        bundle = self._question.bundle
        if bundle is not None and shape == _own_shape(bundle):
            prefix, windows = bundle.manifest.prefix, dict(bundle.manifest.windows)
        else:
            prefix, windows = self._prefix(shape), {}
        for size in self._question.settings.windows:
            measured = size in windows
            plan = windows[size] if measured else self._window(size, shape)
            own = max(prefix.anonymous_bytes, plan.anonymous_bytes)
            yield RoundMemory(size, *shape, own, plan.file_bytes, measured)

    def _prefix(self, shape: Shape) -> MemoryPlan:
        bundle = self._question.bundle
        plan = self._estimated_prefix(shape)
        if bundle is None:
            return plan
        return _scaled(plan, bundle.manifest.prefix, self._estimated_prefix(_own_shape(bundle)))

    def _estimated_prefix(self, shape: Shape) -> MemoryPlan:
        names = [name for name in measured_programs(self._question.settings) if not name.startswith("window")]
        return prefix_plan({name: self._estimate(name, shape) for name in names})

    def _window(self, size: int, shape: Shape) -> MemoryPlan:
        bundle = self._question.bundle
        plan = self._estimate(window_program(size), shape)
        if bundle is None or size not in bundle.manifest.windows:
            return plan
        return _scaled(plan, bundle.manifest.windows[size], self._estimate(window_program(size), _own_shape(bundle)))

    def _estimate(self, name: str, shape: Shape) -> MemoryPlan:
        key = name, shape
        if key not in self._plans:
            if self._on_progress is not None:
                self._on_progress(f"{name}, {shape[0]} rows of {shape[1]} tokens", self._done, self._total)
            self._done += 1
            settings = self._question.settings
            program = build_programs(_at(settings, shape))[name]
            self._plans[key] = estimate_plan(program, self._need(name, alike(settings, name, shape)))
        return self._plans[key]

    def _need(self, name: str, shape: Shape) -> GraphNeed:
        key = name, shape
        if key not in self._needs:
            self._needs[key] = graph_need(trace(build_programs(_at(self._question.settings, shape))[name]))
        return self._needs[key]

    def _needed(self) -> Iterator[tuple[str, Shape]]:
        """All that `rounds` will ask for: what the display counts to."""
        bundle = self._question.bundle
        own = [] if bundle is None else [_own_shape(bundle)]
        asked = set(self._question.shapes).difference(own)
        for name, shape in product(measured_programs(self._question.settings), [*asked, *own] if asked else []):
            is_window = name.startswith("window")
            has_plan = (
                bundle is None or not is_window or any(name == window_program(q) for q in bundle.manifest.windows)
            )
            if shape in asked or has_plan:
                yield name, shape


def alike(settings: ProgramSettings, name: str, shape: Shape) -> Shape:
    """The shape of fewest rows at which a program's graph needs what it needs at `shape`.

    A classifier's training step takes its rows in parts, and a third part adds nothing but rows of its inputs.
    """
    batch_size, seq_len = shape
    if not name.startswith("window") or settings.task != "classification":
        return shape
    rows = rows_at_once(batch_size, seq_len, settings.tokens_at_once)
    two_parts = min(batch_size, 2 * rows)
    same_parts = rows_at_once(two_parts, seq_len, settings.tokens_at_once) == rows
    return (two_parts, seq_len) if same_parts else shape


def _scaled(plan: MemoryPlan, measured: MemoryPlan, estimated: MemoryPlan) -> MemoryPlan:
    """A plan whose workspace is scaled by how the measured one of another shape compares with its estimate."""
    scale = measured.workspace_bytes / max(1, estimated.workspace_bytes)
    return with_workspace(plan, round(plan.workspace_bytes * scale))


def _own_shape(bundle: Bundle) -> Shape:
    return bundle.manifest.shapes.batch_size, bundle.manifest.shapes.seq_len


def _at(settings: ProgramSettings, shape: Shape) -> ProgramSettings:
    """The same programs at another shape; a language model's targets stay the same share of all positions."""
    targets = settings.max_target_tokens
    if targets:
        share = targets / (settings.batch_size * (settings.seq_len - 1))
        targets = max(1, round(share * shape[0] * (shape[1] - 1)))
    return replace(settings, batch_size=shape[0], seq_len=shape[1], max_target_tokens=targets)


def _checked_windows(windows: tuple[int, ...], settings: ProgramSettings) -> tuple[int, ...]:
    layers = settings.family.num_layers
    if any(not 1 <= size <= layers for size in windows):
        raise BadInputError(
            f"--windows {','.join(map(str, windows))} does not fit: the model has {layers} layers, so a window size "
            f"lies between 1 and {layers}."
        )
    return tuple(sorted(set(windows)))


def _shapes(settings: ProgramSettings, batch_sizes: Sequence[int], seq_lens: Sequence[int]) -> tuple[Shape, ...]:
    longest = settings.family.max_seq_len
    shortest = 2 if settings.task == "language_modelling" else 1
    if wrong := [length for length in seq_lens if not shortest <= length <= longest]:
        raise BadInputError(f"--seq-lens {wrong[0]} does not fit: give {shortest} to {longest}, the model's positions.")
    if wrong := [size for size in batch_sizes if size < 1]:
        raise BadInputError(f"--batch-sizes {wrong[0]} is not possible; give 1 or more.")
    return tuple((rows, length) for length, rows in product(sorted(set(seq_lens)), sorted(set(batch_sizes))))
