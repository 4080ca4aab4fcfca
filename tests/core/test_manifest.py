"""Manifests from anywhere: a recorded corpus of damage, every truncation, and values put where they do not belong."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainfed.core.errors import BundleError
from chainfed.core.manifest import MAX_MANIFEST_BYTES, Bundle, Manifest, parse_manifest
from chainfed.core.tensors import sha256_hex

CORPUS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "damaged" / "manifests.json").read_text(encoding="utf-8")
)
VALID: dict[str, Any] = CORPUS["valid"]


def changed(path: list[str | int], value: Any = None, remove: bool = False) -> bytes:
    """The valid manifest with the value at a path of keys replaced or removed."""
    raw = copy.deepcopy(VALID)
    place: Any = raw
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(raw).encode()


def bytes_of(case: dict[str, Any]) -> bytes:
    if "at" in case:
        return changed(case["at"], case.get("value"), case.get("remove", False))
    if "hex" in case:
        return bytes.fromhex(case["hex"])
    return (case["text"] + case.get("repeat", "") * case.get("times", 0)).encode()


def outcome(data: bytes) -> Manifest | None:
    """The manifest; None when it is refused. Anything but a refusal by one sentence fails the test."""
    try:
        return parse_manifest(data, "the manifest")
    except BundleError as error:
        sentence = str(error)
        assert sentence.startswith(("the manifest ", "the manifest: "))
        assert sentence.endswith(("export the bundle again.", "do not use this bundle.", "`chainfed export` wrote."))
        assert sentence.isprintable()
        assert len(sentence) < 600
        return None


@pytest.mark.parametrize("case", CORPUS["cases"], ids=[case["name"] for case in CORPUS["cases"]])
def test_the_corpus_is_refused_or_accepted_as_recorded(case: dict[str, Any]) -> None:
    assert (outcome(bytes_of(case)) is not None) == case.get("accepted", False)


def test_a_manifest_survives_writing_and_reading() -> None:
    manifest = parse_manifest(json.dumps(VALID).encode(), "it")
    assert parse_manifest(manifest.to_json(), "it") == manifest
    assert json.loads(manifest.to_json()) == VALID


def test_every_truncation_is_refused() -> None:
    data = json.dumps(VALID).encode()
    assert all(outcome(data[:length]) is None for length in range(0, len(data), 7))


def test_a_manifest_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(5_000_000_000)
    with pytest.raises(BundleError, match=f"more than {MAX_MANIFEST_BYTES} bytes"):
        Bundle(tmp_path)


def _paths(value: Any, before: tuple[str | int, ...] = ()) -> list[list[str | int]]:
    """Every place in a JSON value."""
    places = [list(before)] if before else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        places += _paths(inner, (*before, key))
    return places


@given(
    st.sampled_from(_paths(VALID)),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=10),
        st.sampled_from([2**31, 2**63, -1, "../x", "/x", [], {}, [[]], {"a": {}}]),
    ),
)
def test_any_value_at_any_place_is_refused_or_keeps_its_meaning(path: list[str | int], value: Any) -> None:
    manifest = outcome(changed(path, value))
    if manifest is not None:
        written: Any = json.loads(manifest.to_json())
        for key in path:
            written = written[key]
        assert written == value
        assert type(written) is type(value) or {type(written), type(value)} == {int, float}


def _bundle(folder: Path) -> dict[str, Any]:
    raw = copy.deepcopy(VALID)
    for name in raw["files"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
        raw["files"][name] = {"bytes": len(name), "sha256": sha256_hex(name.encode())}
    (folder / "manifest.json").write_text(json.dumps(raw))
    return raw


def test_a_file_that_is_missing_or_has_another_size_is_named(tmp_path: Path) -> None:
    _bundle(tmp_path)
    Bundle(tmp_path).verify_files()
    shard = tmp_path / "weights" / "layer_01.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"layer_01\.safetensors has 27 bytes, the manifest says 28"):
        Bundle(tmp_path)
    shard.write_bytes(b"x" * 28)
    with pytest.raises(BundleError, match=r"layer_01\.safetensors does not have the SHA-256"):
        Bundle(tmp_path).verify_files()
    shard.unlink()
    with pytest.raises(BundleError, match=r"lacks weights/layer_01\.safetensors"):
        Bundle(tmp_path)
    shard.mkdir()
    with pytest.raises(BundleError, match=r"lacks weights/layer_01\.safetensors"):
        Bundle(tmp_path)


@pytest.mark.parametrize("linked", ["weights/layer_01.safetensors", "weights"])
def test_a_link_out_of_the_bundle_is_refused(tmp_path: Path, linked: str) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    _bundle(bundle)
    (bundle / linked).rename(tmp_path / "outside")
    (bundle / linked).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="is a link to a file outside the bundle"):
        Bundle(bundle)


def test_links_inside_the_bundle_and_to_it_are_followed(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    _bundle(bundle)
    shard = bundle / "weights" / "layer_01.safetensors"
    shard.rename(bundle / "elsewhere")
    shard.symlink_to(os.path.relpath(bundle / "elsewhere", shard.parent))
    (tmp_path / "link").symlink_to(bundle)
    Bundle(tmp_path / "link").verify_files()
