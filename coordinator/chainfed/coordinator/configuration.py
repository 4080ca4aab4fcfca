"""The settings of a run: what the operator gave, completed from the bundle's manifest and checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Manifest
from chainfed.v1 import device_service_pb2, run_service_pb2

DEFAULT_ROUND_DEADLINE_SECONDS = 86_400

GlobalBranchStatistics = Literal["window_end", "last_layer"]

_STATISTICS_BY_NAME: dict[GlobalBranchStatistics, device_service_pb2.GlobalBranchStatistics] = {
    "window_end": device_service_pb2.GLOBAL_BRANCH_STATISTICS_WINDOW_END,
    "last_layer": device_service_pb2.GLOBAL_BRANCH_STATISTICS_LAST_LAYER,
}


@dataclass(frozen=True)
class RunConfig:
    """Every setting of a run with its value; meanings and units as in the protocol's RunConfig.

    In the paper's symbols `window_size` is Q (0: the largest that fits), `foat_threshold` is T and
    `global_loss_weight` lambda.
    """

    window_size: int
    rounds: int
    devices_per_round: int
    min_devices: int
    seed: int
    foat_threshold: float
    global_loss_weight: float
    warmup_rounds: int
    local_epochs: int
    adapter_lr: float
    head_lr: float
    final_head_lr: float
    foat_examples: int
    global_branch_statistics: GlobalBranchStatistics
    evaluate_every: int
    round_deadline_seconds: int
    min_updates: int
    over_selection: float
    evaluate_examples: int
    max_update_norm: float

    def to_message(self) -> run_service_pb2.RunConfig:
        """The configuration on the wire, every field set."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["global_branch_statistics"] = statistics_enum(self.global_branch_statistics)
        return run_service_pb2.RunConfig(**fields)


def statistics_enum(name: GlobalBranchStatistics) -> device_service_pb2.GlobalBranchStatistics:
    """The protocol's value of a manifest's name."""
    return _STATISTICS_BY_NAME[name]


def complete(given: run_service_pb2.RunConfig, manifest: Manifest) -> RunConfig:
    """The run's settings: `given`, and the manifest's defaults where it says nothing.

    Raises BadInputError, naming the field and what it may be, when a value cannot be used.
    """
    defaults = manifest.defaults

    def choose(field: str) -> float:
        value: float = getattr(given, field) if given.HasField(field) else getattr(defaults, field)
        return value

    config = RunConfig(
        window_size=given.window_size,
        rounds=given.rounds,
        devices_per_round=given.devices_per_round,
        min_devices=given.min_devices,
        seed=given.seed,
        foat_threshold=choose("foat_threshold"),
        global_loss_weight=choose("global_loss_weight"),
        warmup_rounds=int(choose("warmup_rounds")),
        local_epochs=int(choose("local_epochs")),
        adapter_lr=choose("adapter_lr"),
        head_lr=choose("head_lr"),
        final_head_lr=choose("final_head_lr"),
        foat_examples=int(choose("foat_examples")),
        global_branch_statistics=_statistics_name(given, manifest),
        evaluate_every=given.evaluate_every,
        round_deadline_seconds=given.round_deadline_seconds or DEFAULT_ROUND_DEADLINE_SECONDS,
        min_updates=given.min_updates or 1,
        over_selection=given.over_selection or 1.0,
        evaluate_examples=given.evaluate_examples,
        max_update_norm=given.max_update_norm,
    )
    _check(config, manifest)
    return config


def _statistics_name(given: run_service_pb2.RunConfig, manifest: Manifest) -> GlobalBranchStatistics:
    if not given.HasField("global_branch_statistics"):
        return manifest.defaults.global_branch_statistics
    for name, value in _STATISTICS_BY_NAME.items():
        if value == given.global_branch_statistics:
            return name
    raise BadInputError(
        f"global_branch_statistics {given.global_branch_statistics} is unknown; give window_end or last_layer."
    )


_Rule = tuple[str, Callable[[float], bool], str]

_RULES: tuple[_Rule, ...] = (
    ("rounds", lambda value: 1 <= value <= 1_000_000, "1 to 1000000"),
    ("devices_per_round", lambda value: 1 <= value <= 100_000, "1 to 100000"),
    ("min_devices", lambda value: 1 <= value <= 1_000_000, "1 to 1000000"),
    ("foat_threshold", lambda value: 0 <= value <= 1, "0 to 1"),
    ("global_loss_weight", lambda value: 0 <= value < math.inf, "0 or more"),
    ("warmup_rounds", lambda value: value <= 1_000_000, "0 to 1000000"),
    ("local_epochs", lambda value: 1 <= value <= 10_000, "1 to 10000"),
    ("adapter_lr", lambda value: 0 < value < math.inf, "above 0"),
    ("head_lr", lambda value: 0 < value < math.inf, "above 0"),
    ("final_head_lr", lambda value: 0 <= value < math.inf, "0 or more"),
    ("foat_examples", lambda value: value >= 2, "2 or more"),
    ("over_selection", lambda value: 1 <= value <= 4, "1 to 4"),
    ("max_update_norm", lambda value: 0 <= value < math.inf, "0 (no bound) or more"),
)


def _check(config: RunConfig, manifest: Manifest) -> None:
    for field, allowed, words in _RULES:
        value = getattr(config, field)
        if not allowed(value):
            raise BadInputError(f"{field} is {value:g}, but must be {words}; correct the run's configuration.")
    if config.window_size and config.window_size not in manifest.windows:
        sizes = ", ".join(str(size) for size in sorted(manifest.windows))
        raise BadInputError(
            f"window_size is {config.window_size}, but the bundle has training programs for {sizes}; give "
            "one of these, "
            "or 0 for the largest that fits, or export the bundle with other --windows."
        )
    if config.warmup_rounds and manifest.is_language_model:
        raise BadInputError(
            f"warmup_rounds is {config.warmup_rounds}, but a language model's head is not trained; give 0."
        )
    if config.min_updates > config.devices_per_round:
        raise BadInputError(
            f"min_updates is {config.min_updates}, but only {config.devices_per_round} devices take part in "
            "a round; "
            "give at most devices_per_round."
        )
