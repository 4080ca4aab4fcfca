"""The script that builds the native library of android-sdk/executorch-host, and the record of the API it offers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "android-sdk" / "executorch-host"
LIBRARY = "libchainfed_executorch.so"

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("javac")), reason="needs g++ and a JDK to build the native library"
)


def build(module: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(module / "build_shim.sh"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=250,
    )


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A copy of what the script reads."""
    copy = tmp_path / "module"
    shutil.copytree(MODULE / "src" / "main" / "native", copy / "src" / "main" / "native")
    shutil.copy2(MODULE / "build_shim.sh", copy)
    return copy


@needs_compiler
@pytest.mark.slow
def test_the_library_is_built_once_and_again_when_a_source_changes(module: Path, tmp_path: Path) -> None:
    library = tmp_path / "out" / LIBRARY

    def built_at() -> int:
        result = build(module, str(library.parent), CHAINFED_PYTHON=sys.executable)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        return library.stat().st_mtime_ns

    first = built_at()
    assert built_at() == first
    with (module / "src/main/native/jni.cpp").open("a") as source:
        source.write("// A change.\n")
    second = built_at()
    assert second > first
    library.unlink()
    assert built_at() > second
    linked = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    assert "not found" not in linked
    assert "_portable_lib" in linked


@needs_compiler
def test_a_python_that_is_missing_is_one_sentence(module: Path, tmp_path: Path) -> None:
    result = build(module, str(tmp_path / "out"), str(tmp_path / "python"))
    assert result.returncode == 1
    assert result.stderr == (
        f"build_shim.sh: there is no Python at {tmp_path}/python; run 'make setup', or set CHAINFED_PYTHON.\n"
    )


@needs_compiler
def test_a_python_without_executorch_is_one_sentence(module: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    result = build(module, str(tmp_path / "out"), str(python))
    assert result.returncode == 1
    assert result.stderr == f"build_shim.sh: {python} has executorch '', this needs 1.4; run 'make setup'.\n"
    assert not (tmp_path / "out" / LIBRARY).exists()


def test_the_recorded_api_is_sorted_signatures_of_one_package() -> None:
    first, *lines = (ROOT / "tests/vectors/executorch_android_api.txt").read_text().splitlines()
    assert first.startswith("# ")
    assert "1.4.1" in first
    assert lines == sorted(set(lines))
    signature = re.compile(r"(public|protected) [\w.$ \[\]]*org\.pytorch\.executorch\.[\w.$]+(\([\w.$, \[\]]*\))?.*")
    assert [line for line in lines if not signature.fullmatch(line)] == []
