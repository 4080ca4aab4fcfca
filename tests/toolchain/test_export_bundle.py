"""A whole export of a tiny model: contents, repeatability, and what is left after a failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chainfed.core.errors import BadInputError, ModelError
from chainfed.core.manifest import Bundle, layer_file
from chainfed.core.tensors import check_shapes, decode, sha256_hex
from chainfed.runtime.shards import Shard
from chainfed.toolchain import program_files
from chainfed.toolchain.checkpoint import Checkpoint
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.toolchain.verify import verify_bundle


@pytest.fixture
def settings(tiny_bundle: Bundle, tiny_model: Path, tmp_path: Path) -> ExportSettings:
    """The settings of `tiny_bundle`, whose programs are in the cache by now."""
    labels = tiny_bundle.manifest.task.labels
    return ExportSettings(
        str(tiny_model), labels, tmp_path / "bundle", seq_len=16, batch_size=4, adapter_dim=8, windows=(1, 2, 3)
    )


@pytest.fixture
def no_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes lowering and measuring fail: whatever is exported must come from the cache."""

    def lower_nothing(_: object, names: Sequence[str], weights: Path) -> Iterator[None]:
        assert not names, "the cache should have had these"
        return iter(())

    def measure_nothing(programs: Mapping[str, object]) -> None:
        raise AssertionError(f"the cache should have had the memory of {', '.join(programs)}")

    monkeypatch.setattr(program_files, "lower_programs", lower_nothing)
    monkeypatch.setattr(program_files, "measure_peaks", measure_nothing)


def test_the_bundle_is_complete_and_its_hashes_hold(tiny_bundle: Bundle) -> None:
    tiny_bundle.verify_files()
    manifest = tiny_bundle.manifest
    on_disk = {str(path.relative_to(tiny_bundle.folder)) for path in tiny_bundle.folder.rglob("*") if path.is_file()}
    assert on_disk == {"manifest.json", *manifest.files}
    assert set(manifest.programs) == {"embed", "block", "pool", "head", "score", "window_q1", "window_q2", "window_q3"}
    assert manifest.shapes.model_dump() == {"batch_size": 4, "seq_len": 16}
    assert manifest.model.num_layers == 3
    assert manifest.task.pooling == "mean"


def test_shards_hold_the_weights_of_the_model_by_local_name(tiny_bundle: Bundle, tiny_model: Path) -> None:
    checkpoint = Checkpoint(tiny_model)
    for layer in range(3):
        expected = checkpoint.layer(layer)
        with Shard(tiny_bundle.path(layer_file(layer))) as shard:
            assert set(shard.tensors) == set(tiny_bundle.manifest.model.layer_tensors)
            assert all(np.array_equal(tensor.numpy(), expected[name]) for name, tensor in shard.tensors.items())


def test_the_initial_state_is_the_identity_and_depends_on_the_seed(
    tiny_bundle: Bundle, settings: ExportSettings, no_lowering: None
) -> None:
    state = decode(tiny_bundle.path("adapters.safetensors").read_bytes(), "state")
    check_shapes(state, tiny_bundle.manifest.state_shapes(), "state")
    assert all(not state[f"adapters.{layer}.up"].any() and state[f"adapters.{layer}.down"].any() for layer in range(3))
    assert 0.015 < float(np.std(np.concatenate([state[f"adapters.{layer}.down"] for layer in range(3)]))) < 0.025
    assert all((state[f"statistics.{layer}.rstd"] == 1).all() for layer in range(3))
    other = export_bundle(replace(settings, seed=1))
    assert other.path("adapters.safetensors").read_bytes() != tiny_bundle.path("adapters.safetensors").read_bytes()


def test_a_second_export_gives_equal_bytes_from_the_cache(
    tiny_bundle: Bundle, settings: ExportSettings, no_lowering: None
) -> None:
    steps: list[tuple[str, int, int]] = []
    again = export_bundle(settings, lambda *step: steps.append(step))
    assert again.manifest_bytes == tiny_bundle.manifest_bytes
    assert [done for _, done, _ in steps[1:]] == list(range(len(steps) - 1))
    assert {total for _, _, total in steps[1:]} == {len(steps) - 1}
    assert sum(step.startswith("program ") for step, _, _ in steps) == 8


@pytest.mark.parametrize("count", [2, 8])
def test_another_set_of_labels_lowers_nothing(count: int, settings: ExportSettings, no_lowering: None) -> None:
    bundle = export_bundle(replace(settings, labels=tuple(f"label {number}" for number in range(count))))
    assert bundle.manifest.state_shapes()["heads.0.weight"] == (count, 32)
    assert verify_bundle(bundle).ok


def test_the_tokenizer_cuts_and_pads_to_the_sequence_length(tiny_bundle: Bundle) -> None:
    tokenizer = json.loads(tiny_bundle.path("tokenizer.json").read_text())
    assert tokenizer["truncation"]["max_length"] == 16
    assert tokenizer["padding"]["strategy"] == {"Fixed": 16}
    assert json.loads(tiny_bundle.path("tokenizer_config.json").read_text())["mask_token"] == "[MASK]"


def test_nothing_in_the_bundle_tells_where_it_was_made(tiny_bundle: Bundle, tiny_model: Path) -> None:
    for name in ("manifest.json", "config.json", "tokenizer_config.json"):
        text = (tiny_bundle.folder / name).read_text()
        assert str(tiny_model) not in text
        assert str(tiny_bundle.folder) not in text


def test_a_failed_export_leaves_nothing_behind(settings: ExportSettings, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        export_bundle(replace(settings, model=str(model)))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_existing_bundle_is_replaced_only_by_force(settings: ExportSettings, no_lowering: None) -> None:
    export_bundle(settings)
    with pytest.raises(BadInputError, match="exists already"):
        export_bundle(settings)
    other = export_bundle(replace(settings, force=True, seed=3))
    assert sha256_hex((settings.out / "manifest.json").read_bytes()) == other.manifest_sha256
