"""The Kotlin device in every interop case: lost connections, kills, damaged files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_kotlin_device_passes_every_case(jvm_device: Path) -> None:
    command = [sys.executable, "-m", "chainfed.core", "interop", "--device", str(jvm_device), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert (result["passed"], result["failed"]) == (10, 0)
    assert all(case["checked"] for case in result["cases"])
