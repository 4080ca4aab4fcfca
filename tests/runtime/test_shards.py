"""Mapped weights: the right numbers, no copy, and a sentence for every damage."""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from chainfed.core.errors import BundleError
from chainfed.runtime import memory
from chainfed.runtime.shards import GUARD_BYTES, Shard, prefetch


def write(path: Path, **tensors: np.ndarray) -> Path:
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


def test_tensors_have_their_names_shapes_and_numbers(tmp_path: Path) -> None:
    weight, ids = np.arange(12, dtype=np.float32).reshape(3, 4), np.array([5, -6], dtype=np.int64)
    path = write(
        tmp_path / "s", weight=weight, ids=ids, scalar=np.array(2.5, np.float32), none=np.zeros((0, 3), np.float32)
    )
    with Shard(path) as shard:
        assert shard.tensors.keys() == {"weight", "ids", "scalar", "none"}
        assert torch.equal(shard.tensors["weight"], torch.from_numpy(weight))
        assert torch.equal(shard.tensors["ids"], torch.from_numpy(ids))
        assert shard.tensors["scalar"].item() == 2.5
        assert shard.tensors["none"].shape == (0, 3)


def test_weights_are_never_the_processs_own_memory(tmp_path: Path) -> None:
    if memory.anonymous_bytes() == 0:
        pytest.skip("the system does not tell RssAnon")
    path = write(tmp_path / "s", a=np.ones((2000, 4000), np.float32))
    memory.trim()
    anonymous, in_files = memory.anonymous_bytes(), memory.file_bytes()
    shard = Shard(path)
    prefetch(path)
    assert shard.tensors["a"].sum().item() == 8_000_000
    assert memory.file_bytes() - in_files > 30_000_000
    assert memory.anonymous_bytes() - anonymous < 3_000_000
    shard.evict()
    assert memory.file_bytes() - in_files < 3_000_000
    assert shard.tensors["a"].sum().item() == 8_000_000
    shard.close()


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "s", a=np.zeros(4, np.float32))
    before = path.read_bytes()
    with Shard(path) as shard:
        shard.tensors["a"].fill_(1.0)
    assert path.read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell its mappings")
@pytest.mark.parametrize("spare", [0, 4, GUARD_BYTES - 4, GUARD_BYTES, 2000])
def test_a_tensor_is_followed_by_bytes_that_a_kernel_may_read(tmp_path: Path, spare: int) -> None:
    """`spare` bytes lie between the last tensor's end and the end of the file's last page."""
    size = 3 * mmap.PAGESIZE - spare
    header = len(write(tmp_path / "s", a=np.zeros(2000, np.float32)).read_bytes()) - 8000
    values = np.arange((size - header) // 4, dtype=np.float32)
    path = write(tmp_path / "s", a=values)
    assert path.stat().st_size == size
    with Shard(path) as shard:
        assert torch.equal(shard.tensors["a"], torch.from_numpy(values))
        assert lies_in(path, shard.tensors["a"]) == (spare >= GUARD_BYTES)


def lies_in(path: Path, tensor: torch.Tensor) -> bool:
    """Whether the tensor's bytes are a mapping of the file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return line.endswith(str(path))
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell its mappings")
def test_a_shard_is_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "s", a=np.ones(100, np.float32))
    with Shard(path) as shard:
        assert lies_in(path, shard.tensors["a"])
        assert not lies_in(path, shard.tensors["a"].clone())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell its mappings")
def test_a_tensor_outlives_its_shard_and_the_mapping_ends_with_it(tmp_path: Path) -> None:
    path = write(tmp_path / "s", a=np.ones(100_000, np.float32))
    with Shard(path) as shard:
        tensor = shard.tensors["a"]
    assert tensor.sum().item() == 100_000
    assert str(path) in Path("/proc/self/maps").read_text()
    del tensor, shard
    assert str(path) not in Path("/proc/self/maps").read_text()


CORPUS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "damaged" / "safetensors.json").read_text(encoding="utf-8")
)["cases"]


@pytest.mark.parametrize("case", CORPUS, ids=[case["name"] for case in CORPUS])
def test_the_corpus_of_damage_is_refused_before_anything_is_mapped(case: dict[str, Any], tmp_path: Path) -> None:
    header = bytes.fromhex(case["header_hex"]) if "header_hex" in case else case["header"].encode()
    header += case.get("repeat", "").encode() * case.get("times", 0)
    length = int(case.get("length", len(header)))
    (tmp_path / "s").write_bytes(struct.pack("<Q", length) + header + bytes(case["data_bytes"]))
    if case.get("accepted"):
        with Shard(tmp_path / "s") as shard:
            assert all(tensor.abs().sum() == 0 for tensor in shard.tensors.values())
    else:
        with pytest.raises(BundleError, match="no safetensors file"):
            Shard(tmp_path / "s")


def test_a_tensor_that_lies_at_no_multiple_of_its_element_is_copied(tmp_path: Path) -> None:
    header = b'{"t":{"dtype":"I64","shape":[600],"data_offsets":[0,4800]}}  '
    values = np.arange(600, dtype=np.int64)
    (tmp_path / "s").write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    assert (8 + len(header)) % 8
    with Shard(tmp_path / "s") as shard:
        assert torch.equal(shard.tensors["t"], torch.from_numpy(values))
        assert shard.tensors["t"].data_ptr() % 8 == 0


def test_damage_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "layer_00.safetensors", a=np.ones(100, np.float32))
    data = path.read_bytes()
    for damaged in (data[:-1], data[:4], b"", b"\xff" * 50):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"layer_00\.safetensors"):
            Shard(path)
    path.unlink()
    with pytest.raises(BundleError, match="does not exist"):
        Shard(path)
    write(path, a=np.ones(3, np.float64))
    with pytest.raises(BundleError, match="F64"):
        Shard(path)
