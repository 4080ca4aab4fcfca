"""The programs of a bundle as files, lowered or taken from the cache, with what they were measured to hold."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping
from typing import Any

from chainfed.core.manifest import ProgramEntry, TensorSpec, frozen_block_program, layer_file
from chainfed.toolchain.memory_probe import measure_peaks
from chainfed.toolchain.new_folder import NewFolder
from chainfed.toolchain.parallel_lowering import lower_programs
from chainfed.toolchain.program_cache import ProgramCache, content_key, package_versions, source_digest
from chainfed.toolchain.programs import ProgramDefinition, ProgramSettings
from chainfed.toolchain.programs import TensorSpec as ProgramTensor
from chainfed.toolchain.steps import block_programs, build_programs

Report = Callable[[str], None]
"""Called with what is done next."""

_LOWERING = ("chainfed.toolchain.frozen_block", "chainfed.toolchain.lowering", "chainfed.toolchain.steps")
_MEASURING = ("chainfed.toolchain.memory_probe",)
_PACKAGES = ("executorch", "torch", "transformers")
_NOT_IN_PROGRAMS = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "id2label",
    "label2id",
    "name_or_path",
    "num_labels",
    "problem_type",
    "task_specific_params",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
)
"""What a model's configuration says that no program depends on: where it came from, what it was last tuned for."""


def program_file(name: str) -> str:
    """Path in the bundle of a program."""
    return f"programs/{name}.pte"


def measured_programs(settings: ProgramSettings) -> list[str]:
    """The programs whose memory the manifest's plans are made of; the first of blocks that are alike."""
    pool = ["pool"] if settings.task == "classification" else []
    windows = [f"window_q{size}" for size in settings.windows]
    return ["embed", block_programs(settings)[0].name, *pool, *windows]


class ProgramWriter:
    """Writes the programs of one bundle and measures them."""

    def __init__(
        self, settings: ProgramSettings, folder: NewFolder, cache: ProgramCache, names: Collection[str] | None = None
    ) -> None:
        """`folder` gets the files, `cache` what is worth keeping for the next bundle of the same shapes.

        `names`: the programs to write; None for all.
        """
        self._folder = folder
        self._cache = cache
        self._settings = settings
        definitions = build_programs(settings)
        self._definitions = {name: definitions[name] for name in names or definitions}
        self.entries: dict[str, ProgramEntry] = {}

    @property
    def num_steps(self) -> int:
        """How often `write` and `measure` report together."""
        return len(self._definitions) + 1

    def write(self, report: Report) -> None:
        """Takes each program from the cache or lowers it, and fills `entries`; to be called after the weights lie in
        the folder, since some programs hold them."""
        missing = []
        keys = self._keys()
        for name, key in keys.items():
            cached = self._cache.load(key)
            if cached is not None and isinstance(cached[1].get("arena_bytes"), int):
                report(f"program {name}")
                self._write(name, cached[0], cached[1]["arena_bytes"])
            else:
                missing.append(name)
        lowered = lower_programs(self._settings, missing, self._folder.path(""))
        for number in range(1, len(missing) + 1):
            report(f"program {number} of {len(missing)} that are new")
            name, data, arena_bytes = next(lowered)
            self._cache.store(keys[name], data, {"arena_bytes": arena_bytes})
            self._write(name, data, arena_bytes)

    def measure(self, report: Report) -> dict[str, int]:
        """Peak anonymous bytes of every program of a training round; to be called after `write`."""
        report("memory of the programs")
        wanted = [name for name in measured_programs(self._settings) if name in self._definitions]
        keys = {name: self._memory_key(name) for name in wanted}
        peaks = {name: peak for name, key in keys.items() if (peak := self._cached_peak(key)) is not None}
        missing = {
            name: (self._folder.path(program_file(name)), self.entries[name]) for name in keys if name not in peaks
        }
        if missing:
            measured = measure_peaks(missing)
            for name, peak in measured.items():
                self._cache.store(keys[name], b"", {"peak_anonymous_bytes": peak})
            peaks |= measured
        return peaks

    def _keys(self) -> dict[str, str]:
        """The key of each program; that of one which holds a layer's weights depends on them too."""
        keys = _program_keys(self._settings, self._definitions)
        for layer in range(self._settings.family.num_layers):
            name = frozen_block_program(layer)
            if name in keys:
                keys[name] = content_key(keys[name], self._folder.files[layer_file(layer)].sha256)
        return keys

    def _write(self, name: str, data: bytes, arena_bytes: int) -> None:
        definition = self._definitions[name]
        self._folder.write(program_file(name), data)
        self.entries[name] = ProgramEntry(
            file=program_file(name),
            inputs=tuple(_entry_spec(spec) for spec in definition.inputs),
            outputs=tuple(_entry_spec(spec) for spec in definition.outputs),
            arena_bytes=arena_bytes,
        )

    def _memory_key(self, name: str) -> str:
        machine = [platform.system(), platform.machine()]
        return content_key("memory", self._folder.files[program_file(name)].sha256, machine, source_digest(_MEASURING))

    def _cached_peak(self, key: str) -> int | None:
        cached = self._cache.load(key)
        peak = cached[1].get("peak_anonymous_bytes") if cached is not None else None
        return peak if isinstance(peak, int) else None


def _program_keys(settings: ProgramSettings, definitions: Mapping[str, ProgramDefinition]) -> dict[str, str]:
    """A key for each program over all that its bytes depend on: packages, sources, model settings, shapes."""
    family = settings.family
    shared: list[Any] = [
        package_versions(*_PACKAGES),
        source_digest([*_LOWERING, type(family).__module__]),
        {name: value for name, value in family.config.to_dict().items() if name not in _NOT_IN_PROGRAMS},
        settings.task,
        settings.tokens_at_once,
    ]
    return {
        name: content_key(
            shared,
            settings.pooling if _pools(definition) else None,
            vars(settings.optimizer) if _trains(definition) else None,
            [name, _shapes(definition.inputs), _shapes(definition.outputs)],
        )
        for name, definition in definitions.items()
    }


def _trains(definition: ProgramDefinition) -> bool:
    """Whether the optimiser is in the program: it gives back tensors that it takes, other than hidden states."""
    taken = {spec.name for spec in definition.inputs} - {"h"}
    return any(spec.name in taken for spec in definition.outputs)


def _pools(definition: ProgramDefinition) -> bool:
    """Whether hidden states end in the program: it takes them and gives none."""
    return _has_hidden_states(definition.inputs) and not _has_hidden_states(definition.outputs)


def _has_hidden_states(specs: tuple[ProgramTensor, ...]) -> bool:
    return any(spec.name == "h" for spec in specs)


def _shapes(specs: tuple[ProgramTensor, ...]) -> list[list[Any]]:
    return [[spec.name, list(spec.shape), spec.dtype] for spec in specs]


def _entry_spec(spec: ProgramTensor) -> TensorSpec:
    return TensorSpec(name=spec.name, shape=spec.shape, dtype=spec.dtype)
