"""Which files an assignment brings: what the round runs, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainfed.coordinator.assignments import missing_parts, template
from chainfed.coordinator.configuration import complete
from chainfed.coordinator.records import Blob, RoundKind, Run, RunState
from chainfed.coordinator.schedule import Window
from chainfed.core.manifest import Bundle, FileEntry, Manifest, ProgramEntry, frozen_block_program
from chainfed.core.tensors import piece_of
from chainfed.v1 import device_service_pb2
from tests.coordinator.conftest import LAYERS, config


def with_frozen_blocks(manifest: Manifest) -> Manifest:
    """The same bundle with a block program for each layer."""
    names = [frozen_block_program(layer) for layer in range(LAYERS)]
    programs = {name: entry for name, entry in manifest.programs.items() if name != "block"}
    programs |= {
        name: ProgramEntry(file=f"programs/{name}.pte", inputs=(), outputs=(), arena_bytes=10) for name in names
    }
    files = manifest.files | {f"programs/{name}.pte": FileEntry(bytes=1, sha256="b" * 64) for name in names}
    return manifest.model_copy(update={"programs": programs, "files": files})


def brought(manifest: Manifest, kind: RoundKind, window: Window | None = None) -> set[str]:
    """Layer shards and block programs of an assignment, by their names without folder and ending."""
    pieces = {piece_of(name): Blob("a" * 64, 1) for name in manifest.state_shapes()}
    run = Run(
        "0" * 12,
        "",
        RunState.TRAINING,
        complete(config(), manifest),
        Blob("c" * 64, 1),
        pieces,
        0,
        foat_start=1,
        window_size=2,
    )
    message = device_service_pb2.Assignment.FromString(template(run, manifest, kind, 0, window))
    names = {Path(file.name).stem for file in message.files}
    return {name for name in names if name.startswith(("block", "layer"))}


def test_one_block_program_serves_all_layers_and_takes_their_shards(bundle: Bundle) -> None:
    window = Window(1, 2)
    assert brought(bundle.manifest, RoundKind.TRAIN, window) == {"block", "layer_00", "layer_01", "layer_02"}
    every = {"block", *(f"layer_{layer:02d}" for layer in range(LAYERS))}
    assert brought(bundle.manifest, RoundKind.EVALUATE) == every


def test_blocks_that_hold_weights_take_the_place_of_shards_below_the_window(bundle: Bundle) -> None:
    manifest = with_frozen_blocks(bundle.manifest)
    assert brought(manifest, RoundKind.TRAIN, Window(1, 2)) == {"block_00", "layer_01", "layer_02"}
    assert brought(manifest, RoundKind.TRAIN, Window(0, 1)) == {"layer_00"}


@pytest.mark.parametrize("kind", [RoundKind.PROFILE, RoundKind.WARMUP, RoundKind.EVALUATE])
def test_a_pass_through_the_whole_model_needs_no_shard_where_blocks_hold_weights(
    bundle: Bundle, kind: RoundKind
) -> None:
    blocks = {frozen_block_program(layer) for layer in range(LAYERS)}
    assert brought(with_frozen_blocks(bundle.manifest), kind) == blocks


def test_a_bundle_that_lacks_a_block_is_refused(bundle: Bundle) -> None:
    manifest = with_frozen_blocks(bundle.manifest)
    assert missing_parts(manifest) == []
    programs = {name: entry for name, entry in manifest.programs.items() if name != "block_02"}
    assert missing_parts(manifest.model_copy(update={"programs": programs})) == ["block_02"]
