"""The SDK's device, built once for all tests that run it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SDK = Path(__file__).parents[2] / "android-sdk"


@pytest.fixture(scope="session")
def jvm_device() -> Path:
    """`chainfed-jvm-device`, built if its sources changed; without Java and Maven the test is skipped."""
    if not (shutil.which("mvn") and shutil.which("javac") and shutil.which("g++")):
        pytest.skip("needs a JDK, Maven and g++")
    built = SDK / "testing/target/class-path"
    sources = [path for path in SDK.rglob("*") if path.is_file() and "target" not in path.parts]
    if not built.is_file() or built.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        goals = ["mvn", "-q", "-B", "-pl", "testing", "-am", "process-classes"]
        done = subprocess.run(goals, cwd=SDK, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        built.touch()
    return SDK / "chainfed-jvm-device"
