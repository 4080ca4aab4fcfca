"""Holding every program of a bundle, as the ExecuTorch runtime runs it, against PyTorch eager."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chainfed.core.errors import BundleError
from chainfed.core.examples import Example, read_examples
from chainfed.core.manifest import BLOCK_PROGRAM, CONFIG_FILE, MANIFEST_FILE, TOKENIZER_FILE, Bundle, Manifest
from chainfed.core.passages import Passage, read_passages
from chainfed.runtime.language_data import encode_passages
from chainfed.runtime.program import Program, set_threads
from chainfed.toolchain.checkpoint import family_of
from chainfed.toolchain.optimizers import OptimizerSettings
from chainfed.toolchain.programs import ProgramSettings
from chainfed.toolchain.reference import Reference, reference_of, wide_tensors
from chainfed.toolchain.steps import build_programs
from chainfed.toolchain.verify_cases import SENTENCES, Case, Cases, LanguageCases, Rows, classified_rows

Progress = Callable[[str, int, int], None]
"""Called with what is compared next, how many cases are done, and how many there are."""

_BY_ROW = ("h", "features", "logits")

ROUNDING_TOLERANCE = 0.05
"""What is allowed to programs that round activations to int8 in front of each matrix, as a share of the result's norm;
measured are 0.005 to 0.024."""


@dataclass(frozen=True)
class ProgramReport:
    """How one program did.

    Attributes:
        max_error: largest difference between the program and eager over all outputs and cases, relative to the eager
            value where that exceeds 1; for a program that rounds activations, the norm of the difference over that of
            the eager value; infinite when either is not finite.
        worst: the output and the case where it occurred.
        time_ratio: median time of the program over that of eager, one thread, run in turn; the first run of
            both does not count.
        cases: how many cases were compared.
        tolerance: what `max_error` is held against.
    """

    max_error: float
    worst: str
    time_ratio: float
    cases: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """The outcome for a bundle. `tolerance` holds for every program that does not round activations."""

    tolerance: float
    programs: Mapping[str, ProgramReport]

    @property
    def ok(self) -> bool:
        """Whether every program is within the tolerance."""
        return all(report.ok for report in self.programs.values())


def verify_bundle(
    bundle: Bundle,
    data: Path | None = None,
    tolerance: float = 1e-4,
    on_progress: Progress | None = None,
) -> Verification:
    """Runs every program of a bundle on random and on real text and compares each output with eager.

    Training programs take several steps in a row, at the start, in the middle and in the final stage of the chain,
    each side on its own results, so errors may add up. ExecuTorch and torch use one thread afterwards.

    Args:
        bundle: every file's hash is checked first.
        data: JSON lines of real text; None for a few built-in sentences.
        tolerance: what `Verification.ok` is judged by; `ROUNDING_TOLERANCE` takes its place for programs that hold
            quantised weights and round activations.
        on_progress: called before each case.

    Raises:
        BundleError: a file has changed, or the bundle was written by a version with other programs.
        BadInputError: the data cannot be read.
    """
    bundle.verify_files()
    settings = settings_of(bundle)
    _check_programs(bundle, settings)
    set_threads(1)
    reference = reference_of(settings)
    cases = _cases(bundle, reference, data)
    comparisons: dict[str, _Comparison] = {}
    programs: dict[str, Program] = {}
    for done, case in enumerate(cases):
        if on_progress is not None:
            on_progress(f"{case.program}, {case.description}", done, cases.total)
        if case.program not in programs:
            entry = bundle.manifest.programs[case.program]
            programs[case.program] = Program(bundle.path(entry.file), entry)
        comparison = comparisons.setdefault(case.program, _Comparison(tolerance, rounding=bool(case.held)))
        comparison.add(case, programs[case.program], reference)
    return Verification(tolerance, {name: comparison.report() for name, comparison in comparisons.items()})


def settings_of(bundle: Bundle) -> ProgramSettings:
    """The settings that a bundle's programs were made with, from its manifest and its model configuration."""
    manifest = bundle.manifest
    config = json.loads(bundle.path(CONFIG_FILE).read_bytes())
    optimizer = manifest.optimizer
    return ProgramSettings(
        family=family_of(bundle.folder, config),
        batch_size=manifest.shapes.batch_size,
        seq_len=manifest.shapes.seq_len,
        adapter_dim=manifest.adapter.bottleneck,
        num_labels=manifest.num_labels,
        windows=tuple(manifest.windows),
        pooling=manifest.task.pooling or "last",
        task=manifest.task.kind,
        max_target_tokens=manifest.task.max_target_tokens,
        dtype=manifest.model.dtype,
        optimizer=OptimizerSettings(
            name=optimizer.name,
            beta1=optimizer.beta1,
            beta2=optimizer.beta2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            max_grad_norm=optimizer.max_grad_norm,
        ),
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest |actual - expected| / max(1, |expected|); infinite when a value is not finite or the shapes differ."""
    if actual.shape != expected.shape:
        return math.inf
    difference = (actual.double() - expected.double()).abs() / expected.double().abs().clamp(min=1.0)
    largest = difference.max().item() if difference.numel() else 0.0
    return largest if math.isfinite(largest) else math.inf


def norm_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of actual - expected over that of expected; infinite when a value is not finite or the shapes differ."""
    if actual.shape != expected.shape:
        return math.inf
    error = ((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)).item()
    return error if math.isfinite(error) else math.inf


class _Comparison:
    """The cases of one program so far."""

    def __init__(self, tolerance: float, rounding: bool) -> None:
        self._tolerance = ROUNDING_TOLERANCE if rounding else tolerance
        self._error = norm_error if rounding else relative_error
        self._max_error = 0.0
        self._worst = ""
        self._cases = 0
        self._program_seconds: list[float] = []
        self._eager_seconds: list[float] = []

    def add(self, case: Case, program: Program, reference: Reference) -> None:
        """Runs a case on both sides, each step on its own side's results."""
        given, expected = dict(case.inputs), wide_tensors({**case.inputs, **case.held})
        program_kind = BLOCK_PROGRAM if case.program.startswith(BLOCK_PROGRAM) else case.program
        self._cases += 1
        for step in range(1, case.steps + 1):
            started = time.perf_counter()
            actual = program.run(given)
            between = time.perf_counter()
            wanted = reference.run(program_kind, expected)
            self._program_seconds.append(between - started)
            self._eager_seconds.append(time.perf_counter() - between)
            self._compare(case, step, actual, wanted)
            if case.steps > 1:
                given |= {name: tensor for name, tensor in actual.items() if name in given}
                expected |= {name: tensor for name, tensor in wanted.items() if name in expected}

    def report(self) -> ProgramReport:
        """What came of it."""
        program, eager = (statistics.median(seconds[1:]) for seconds in (self._program_seconds, self._eager_seconds))
        return ProgramReport(self._max_error, self._worst, program / eager, self._cases, self._tolerance)

    def _compare(self, case: Case, step: int, actual: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        for name, tensor in actual.items():
            error = self._error(counted(case, name, tensor), counted(case, name, wanted[name]))
            if error > self._max_error:
                self._max_error = error
                self._worst = f"{name} ({case.description}{f', step {step}' if case.steps > 1 else ''})"


def counted(case: Case, name: str, output: Tensor) -> Tensor:
    """What means something of an output: real rows, and of hidden states the positions that hold a token.

    A padded position may see no token at all, within a layer's reach, and then it depends on how that is computed.
    """
    if name not in _BY_ROW or not output.isfinite().all():
        return output
    real = output[: case.rows]
    return real[case.inputs["mask"][: case.rows] > 0] if name == "h" else real


def _check_programs(bundle: Bundle, settings: ProgramSettings) -> None:
    """Raises BundleError unless the manifest lists the tensors that this version's programs have."""
    for name, definition in build_programs(settings).items():
        entry = bundle.manifest.programs.get(name)
        tensors = [(spec.name, spec.shape, spec.dtype) for spec in definition.inputs + definition.outputs]
        listed = [(spec.name, spec.shape, spec.dtype) for spec in (*entry.inputs, *entry.outputs)] if entry else []
        if tensors != listed:
            raise BundleError(
                f"{bundle.folder / MANIFEST_FILE}: the tensors of program {name} are not those of this ChainFed; "
                "export the bundle again."
            )


def _cases(bundle: Bundle, reference: Reference, data: Path | None) -> Cases:
    manifest = bundle.manifest
    if not manifest.is_language_model:
        examples = [Example(text, number % manifest.num_labels) for number, text in enumerate(SENTENCES)]
        if data is not None:
            examples = read_examples(data, manifest.task.labels)
        return Cases(bundle, reference, classified_rows(bundle, examples))
    passages = read_passages(data) if data is not None else _built_in_passages(manifest)
    tokenizer = bundle.path(TOKENIZER_FILE) if manifest.has_tokenizer else None
    wanted = manifest.shapes.batch_size
    rows = encode_passages((passages * wanted)[: max(wanted, len(passages))], manifest, tokenizer)
    chosen = torch.arange(wanted) % len(rows.ids)
    return LanguageCases(bundle, reference, Rows(rows.ids[chosen], rows.mask[chosen], rows.labels[chosen]))


def _built_in_passages(manifest: Manifest) -> list[Passage]:
    """A few sentences; for a bundle without a tokenizer, a few rows of token ids."""
    if manifest.has_tokenizer:
        return [Passage("", text=sentence) for sentence in SENTENCES]
    length, size = manifest.shapes.seq_len, manifest.model.vocab_size
    lengths = [max(2, length - 3 * row) for row in range(manifest.shapes.batch_size)]
    return [
        Passage("", ids=tuple((7 * row + 5 * place + 1) % size for place in range(count)))
        for row, count in enumerate(lengths)
    ]
