"""The parts that exports are written with: new folders, tensor files, the program cache."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from chainfed.core.errors import AddressInUseError, BadInputError
from chainfed.core.tensors import read_layout
from chainfed.toolchain.new_folder import NewFolder
from chainfed.toolchain.program_cache import ProgramCache, content_key, source_digest
from chainfed.toolchain.safetensors_file import TensorSource, sources_of, write_tensors


def _leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with NewFolder(tmp_path / "out", force=False, mark="mark") as folder:
        folder.write("a/b", b"12")
        assert not (tmp_path / "out").exists()
        folder.commit()
    assert (tmp_path / "out" / "a" / "b").read_bytes() == b"12"
    assert folder.files["a/b"].bytes == 2
    assert _leftovers(tmp_path) == ["out"]


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mark").write_text("old")
    with pytest.raises(RuntimeError), NewFolder(tmp_path / "out", force=True, mark="mark") as folder:
        folder.write("mark", b"new")
        raise RuntimeError
    assert (tmp_path / "out" / "mark").read_text() == "old"
    assert _leftovers(tmp_path) == ["out"]


def test_force_replaces_only_a_folder_of_the_same_kind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter").write_text("dear")
    with pytest.raises(BadInputError, match="exists already; give another --out, or --force"):
        NewFolder(out, force=False, mark="mark")
    with pytest.raises(BadInputError, match="is not replaced, because it has no mark"):
        NewFolder(out, force=True, mark="mark")
    (out / "mark").write_text("")
    with NewFolder(out, force=True, mark="mark") as folder:
        folder.write("mark", b"new")
        folder.commit()
    assert _leftovers(out) == ["mark"]
    assert _leftovers(tmp_path) == ["out"]
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="is a file"):
        NewFolder(tmp_path / "file", force=True, mark="mark")


def _killed_in(out: Path, moment: str) -> None:
    """Writes a folder over `out` in a process that is killed at a moment, by its own hand."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            with NewFolder(out, force=True, mark="mark") as folder:
                folder.write("mark", b"new")
                (folder.path("half")).write_bytes(b"1")
                if moment == "filling":
                    die()
                if moment == "between the renames":
                    renames = iter([Path.rename, die])
                    Path.rename = lambda path, target: next(renames)(path, target)  # type: ignore[method-assign, assign, return-value, misc]
                if moment == "removing":
                    shutil.rmtree = die  # type: ignore[assignment]
                folder.commit()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(
    ("moment", "content", "left"),
    [
        ("filling", b"old", [".out.partial", "out"]),
        ("between the renames", None, [".out.partial", ".out.replaced"]),
        ("removing", b"new", [".out.replaced", "out"]),
    ],
)
def test_a_killed_process_leaves_the_old_folder_or_the_new_one_and_the_next_one_clears_up(
    tmp_path: Path, moment: str, content: bytes | None, left: list[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mark").write_bytes(b"old")
    _killed_in(out, moment)
    assert _leftovers(tmp_path) == left
    assert (out / "mark").read_bytes() == content if content else not out.exists()
    with suppress(RuntimeError), NewFolder(out, force=True, mark="mark") as folder:
        assert not folder.path("half").exists()
        raise RuntimeError
    assert (out / "mark").read_bytes() == (b"new" if content == b"new" else b"old")
    with NewFolder(out, force=True, mark="mark") as folder:
        folder.write("mark", b"newest")
        folder.commit()
    assert (out / "mark").read_bytes() == b"newest"
    assert _leftovers(tmp_path) == ["out"]


def test_a_folder_that_came_back_is_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mark").write_bytes(b"old")
    _killed_in(out, "between the renames")
    with pytest.raises(BadInputError, match="exists already"), NewFolder(out, force=False, mark="mark"):
        raise AssertionError("the old folder is back, so this one may not be made")
    assert (out / "mark").read_bytes() == b"old"
    assert _leftovers(tmp_path) == ["out"]


def test_a_link_in_place_of_the_temporary_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(BadInputError, match="cannot be made"):
        NewFolder(tmp_path / "out", force=False, mark="mark").__enter__()
    assert (tmp_path / "mine" / "letter").read_text() == "dear"


def test_two_processes_do_not_write_the_same_folder(tmp_path: Path) -> None:
    with NewFolder(tmp_path / "out", force=False, mark="mark") as first:
        first.write("mark", b"first")
        with pytest.raises(AddressInUseError, match="Another process is writing"):
            NewFolder(tmp_path / "out", force=False, mark="mark").__enter__()
        first.commit()
    assert (tmp_path / "out" / "mark").read_bytes() == b"first"
    assert _leftovers(tmp_path) == ["out"]


def test_tensor_files_are_valid_aligned_and_copied_byte_for_byte(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    tensors = {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in {"a": (3,), "b": (4, 5), "c": (2,)}.items()
    }
    write_tensors(tmp_path / "one", {name: TensorSource.of_array(tensor) for name, tensor in tensors.items()}, {})
    write_tensors(
        tmp_path / "two",
        {f"x.{name}": source for name, source in sources_of(tmp_path / "one").items()},
        {"format": "pt"},
    )
    loaded = safetensors.numpy.load_file(tmp_path / "two")
    assert {name.removeprefix("x."): tensor.tobytes() for name, tensor in loaded.items()} == {
        name: tensor.tobytes() for name, tensor in tensors.items()
    }
    layout = read_layout(tmp_path / "one")
    assert min(place.offset for place in layout.values()) % 64 == 0
    assert sorted(layout, key=lambda name: layout[name].offset) == ["b", "a", "c"]


def test_the_cache_returns_what_was_stored_and_ignores_damage(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path / "cache")
    key = content_key("program", [1, 2])
    assert cache.load(key) is None
    cache.store(key, b"line one\nline two", {"arena_bytes": 5})
    assert cache.load(key) == (b"line one\nline two", {"arena_bytes": 5})
    path = tmp_path / "cache" / key
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole.replace(b"5", b"6"), b"", b"\n", b"[]\n", whole[::-1]):
        path.write_bytes(damaged)
        assert cache.load(key) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ProgramCache(tmp_path / "file")
    cache.store("key", b"", {})
    assert cache.load("key") is None


def test_the_environment_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINFED_CACHE", str(tmp_path / "here"))
    assert ProgramCache().folder == tmp_path / "here"
    monkeypatch.delenv("CHAINFED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ProgramCache().folder == tmp_path / "chainfed"


def test_the_source_digest_follows_imports() -> None:
    lowering = source_digest(["chainfed.toolchain.lowering"])
    assert lowering == source_digest(["chainfed.toolchain.lowering"])
    assert lowering != source_digest(["chainfed.toolchain.lowering", "chainfed.toolchain.export"])
    both = source_digest(["chainfed.toolchain.lowering", "chainfed.toolchain.programs"])
    assert both == lowering, "programs is imported by lowering, so it counts already"
