"""chainfed is a PEP 420 namespace, in the source tree and in the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

SIDES = ("core", "runtime", "toolchain", "coordinator", "harness")


@pytest.fixture(scope="module")
def wheel_names(root: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=root,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_no_folder_claims_the_namespace(root: Path, pyproject: dict[str, Any]) -> None:
    folders = pyproject["tool"]["hatch"]["build"]["dev-mode-dirs"]
    assert sorted(folders) == sorted(("protos", *SIDES))
    for folder in folders:
        assert (root / folder / "chainfed").is_dir(), f"{folder}/chainfed is missing"
        assert not (root / folder / "chainfed" / "__init__.py").exists(), f"{folder} claims the namespace"


def test_each_folder_holds_one_part_of_the_namespace(root: Path) -> None:
    for side in SIDES:
        parts = {path.name for path in (root / side / "chainfed").iterdir() if path.name != "__pycache__"}
        assert parts == {side}
        assert (root / side / "chainfed" / side / "__init__.py").is_file()


def test_wheel_leaves_the_namespace_open(wheel_names: set[str]) -> None:
    assert "chainfed/__init__.py" not in wheel_names
    outside = {name for name in wheel_names if not name.startswith(("chainfed/", "chainfed-"))}
    assert outside == set()


def test_wheel_holds_every_source_file(root: Path, wheel_names: set[str], repository_files: list[Path]) -> None:
    expected = {
        path.relative_to(root / folder).as_posix()
        for folder in ("protos", *SIDES)
        for path in repository_files
        if path.is_relative_to(root / folder / "chainfed")
    }
    assert expected <= wheel_names
    assert {f"chainfed/{side}/py.typed" for side in ("v1", *SIDES)} <= wheel_names


def test_wheel_holds_the_generated_protocol(root: Path, wheel_names: set[str]) -> None:
    stems = [path.stem for path in (root / "protos/chainfed/v1").glob("*.proto")]
    assert stems
    for stem in stems:
        for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
            assert f"chainfed/v1/{stem}{suffix}" in wheel_names


def test_wheel_holds_the_migrations(wheel_names: set[str]) -> None:
    inside = {name for name in wheel_names if name.startswith("chainfed/coordinator/")}
    assert any(name.endswith("/env.py") for name in inside), "alembic's env.py is not in the wheel"
    assert any("/versions/" in name and name.endswith(".py") for name in inside)
