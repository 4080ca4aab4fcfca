"""What a round asks of its devices: the protocol's Assignment without the parts that differ from device to
device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from chainfed.coordinator.configuration import statistics_enum
from chainfed.coordinator.records import Assignment, Blob, RoundKind, Run
from chainfed.coordinator.schedule import Window
from chainfed.core.manifest import TOKENIZER_FILE, Manifest, window_program
from chainfed.core.order import derive_seed
from chainfed.core.tensors import STATISTICS_PIECE, adapter_names, head_names
from chainfed.v1 import blob_pb2, device_service_pb2

PROGRAMS = {
    RoundKind.PROFILE: ("pool",),
    RoundKind.WARMUP: ("pool", "head"),
    RoundKind.TRAIN: (),
    RoundKind.EVALUATE: ("score",),
}
"""Programs of each kind of round after `embed` and the layers that it runs; a training round runs its window's too."""

LANGUAGE_PROGRAMS: dict[RoundKind, tuple[str, ...]] = {
    RoundKind.PROFILE: (),
    RoundKind.TRAIN: (),
    RoundKind.EVALUATE: ("score",),
}
"""The same for language models, which have no heads to train."""


def blob_message(blob: Blob) -> blob_pb2.BlobRef:
    """A blob on the wire."""
    return blob_pb2.BlobRef(sha256=blob.sha256, size_bytes=blob.size_bytes)


def new_assignments(run: Run, number: int, attempt: int, device_ids: Iterable[str]) -> list[Assignment]:
    """One open assignment for each device of an attempt at a round; id and seed follow from the run and the
    device."""

    def assign(device_id: str) -> Assignment:
        name = f"chainfed-assignment/{run.run_id}/{number}/{attempt}/{device_id}"
        assignment_id = hashlib.sha256(name.encode()).hexdigest()[:32]
        seed = derive_seed("assign", run.config.seed, number, device_id)
        return Assignment(assignment_id, run.run_id, number, attempt, device_id, seed)

    return [assign(device_id) for device_id in device_ids]


def template(run: Run, manifest: Manifest, kind: RoundKind, rounds_done: int, window: Window | None) -> bytes:
    """The serialised Assignment of a round with manifest, files, model state and task, but without id,
    device's seed and times.

    `window` is given for training rounds and no others.
    """
    layers = manifest.model.num_layers
    message = device_service_pb2.Assignment(
        run_id=run.run_id,
        manifest=blob_message(run.manifest),
        files=_files(manifest, kind, window),
        foat_start=run.foat_start if run.foat_start >= 0 else layers,
    )
    adapters = [f"adapters.{layer}" for layer in range(layers)]
    heads: list[int] = []
    if kind is RoundKind.PROFILE:
        message.profile.max_examples = run.config.foat_examples
    elif kind is RoundKind.EVALUATE:
        between = 0 < rounds_done < run.config.rounds
        message.evaluate.max_examples = run.config.evaluate_examples if between else 0
        heads = [layers - 1]
    elif kind is RoundKind.WARMUP:
        heads = list(range(run.foat_start + run.window_size - 1, layers))
        message.warmup.head_layers.extend(heads)
        message.warmup.local_epochs = run.config.local_epochs
        message.warmup.head_lr = run.config.head_lr
    elif window is not None:
        heads = sorted({window.end, layers - 1})
        message.train.CopyFrom(_train_task(run, window))
    if manifest.is_language_model:
        heads = []
    statistics = [] if kind is RoundKind.PROFILE or manifest.is_language_model else [STATISTICS_PIECE]
    for piece in adapters + [f"heads.{layer}" for layer in heads] + statistics:
        message.state.add(name=piece, blob=blob_message(run.pieces[piece]))
    return message.SerializeToString(deterministic=True)


def _train_task(run: Run, window: Window) -> device_service_pb2.TrainTask:
    config = run.config
    return device_service_pb2.TrainTask(
        first_layer=window.first_layer,
        window_size=window.size,
        local_epochs=config.local_epochs,
        adapter_lr=config.adapter_lr,
        head_lr=config.head_lr,
        final_head_lr=config.final_head_lr,
        global_loss_weight=config.global_loss_weight,
        global_branch_statistics=statistics_enum(config.global_branch_statistics),
    )


def _files(manifest: Manifest, kind: RoundKind, window: Window | None) -> list[blob_pb2.NamedBlob]:
    blocks = manifest.block_programs(window.first_layer if window else None)
    programs = ["embed", *blocks, *_programs(manifest)[kind]]
    programs += [window_program(window.size)] if window else []
    tokenizer = [TOKENIZER_FILE] if manifest.has_tokenizer else []
    paths = [*tokenizer, *(manifest.programs[name].file for name in programs)]
    passed, end = (window.first_layer, window.end + 1) if window else (manifest.model.num_layers,) * 2
    paths += manifest.weight_files(range(passed if manifest.blocks_hold_weights else 0, end))
    entries = [(path, manifest.files[path]) for path in paths]
    return [
        blob_pb2.NamedBlob(name=path, blob=blob_pb2.BlobRef(sha256=entry.sha256, size_bytes=entry.bytes))
        for path, entry in entries
    ]


def missing_parts(manifest: Manifest) -> list[str]:
    """Programs and files that a run needs and the manifest does not name; empty for a whole bundle."""
    programs = {name for names in _programs(manifest).values() for name in names}
    programs |= {"embed", *manifest.block_programs(), *(window_program(size) for size in manifest.windows)}
    missing = sorted(programs - manifest.programs.keys())
    paths = [*([] if manifest.is_language_model else [TOKENIZER_FILE]), *manifest.weight_files()]
    paths += [entry.file for entry in manifest.programs.values()]
    return missing + sorted(path for path in paths if path not in manifest.files)


def _programs(manifest: Manifest) -> dict[RoundKind, tuple[str, ...]]:
    return LANGUAGE_PROGRAMS if manifest.is_language_model else PROGRAMS


def trained_names(task: device_service_pb2.Assignment, manifest: Manifest) -> tuple[str, ...]:
    """The tensors of the model state that a training or warm-up assignment changes, and so the tensors of
    its update."""
    num_layers = manifest.model.num_layers
    if task.WhichOneof("task") == "warmup":
        return tuple(name for layer in task.warmup.head_layers for name in head_names(layer))
    train = task.train
    end = train.first_layer + train.window_size - 1
    names = [name for layer in range(train.first_layer, end + 1) for name in adapter_names(layer)]
    if manifest.is_language_model:
        return tuple(names)
    names += head_names(end)
    if end < num_layers - 1 and train.final_head_lr > 0:
        names += head_names(num_layers - 1)
    return tuple(names)


def update_shapes(task: device_service_pb2.Assignment, manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a device's update for this assignment."""
    shapes = manifest.state_shapes()
    return {name: shapes[name] for name in trained_names(task, manifest)}
