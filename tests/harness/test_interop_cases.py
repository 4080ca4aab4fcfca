"""The interop cases: the Python device passes them, and a device with a defect fails the case that is about it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from chainfed.harness.interop.ground import PYTHON_DEVICE, Ground, prepare
from chainfed.harness.interop.runner import CASES, CaseResult, choose, run_cases

BROKEN_DEVICE = Path(__file__).with_name("broken_device.py")
LIMIT_SECONDS = 60.0
QUICK = ("DROP_MID_UPLOAD", "BAD_SHARD", "starts_uploads_anew")

DEFECTS = [
    ("DROP_MID_DOWNLOAD", "starts_downloads_anew", "FetchBlob with offset 0"),
    ("DROP_MID_UPLOAD", "starts_uploads_anew", "SubmitUpdate with offset 0"),
    ("STALE_ROUND", "insists", "2 of them: answered, answered"),
    ("STALE_ROUND", "ends_when_late", "ended with exit code 10"),
    ("DUPLICATE_SUBMIT", "sends_twice", "bytes"),
    ("DUPLICATE_SUBMIT", "takes_silence_for_success", "ended with exit code 0"),
    ("KILLED_MID_STEP", "forgets_its_journal", "begun anew"),
    ("KILLED_MID_STEP", "loses_weights", "SHA-256"),
    ("KILLED_MID_PREFIX", "forgets_its_journal", "begun anew"),
    ("KILLED_MID_PREFIX", "loses_hidden_states", "SHA-256"),
    ("COORDINATOR_RESTART", "is_impatient", "ended with exit code 7"),
    ("BAD_SHARD", "trusts_lengths", "exit code 0"),
    ("BAD_SHARD", "never_gives_up", "4.00 times its bytes"),
    ("BAD_SHARD", "shows_its_insides", "a traceback"),
    ("BAD_SHARD", "ends_silently", "no Abandon"),
    ("BAD_SHARD", "is_terse", "cannot be read"),
    ("TRUNCATED_CACHE", "trusts_names", "exit code"),
    ("TRUNCATED_CACHE", "trusts_kept_states", "SHA-256"),
    ("TRUNCATED_CACHE", "fetches_everything_again", "were"),
    ("UNKNOWN_BUNDLE_VERSION", "reads_the_future", "exit code 0"),
    ("UNKNOWN_BUNDLE_VERSION", "is_terse", "cannot be read"),
]


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A small bundle, data, and the undisturbed run that every case is compared with."""
    return prepare(tmp_path_factory.mktemp("interop") / "ground", None, LIMIT_SECONDS, lambda step: None)


def run_case(name: str, ground: Ground, command: list[str], folder: Path) -> CaseResult:
    (result,) = run_cases(choose([name]), ground, command, folder, LIMIT_SECONDS)
    return result


def marked(name: str) -> pytest.MarkDecorator | tuple[()]:
    """Some run with the quick tests, so that a change shows at once; each takes some seconds."""
    return () if name in QUICK else pytest.mark.slow


@pytest.mark.parametrize("name", [pytest.param(case.name, marks=marked(case.name)) for case in CASES])
def test_the_python_device_passes(name: str, ground: Ground, tmp_path: Path) -> None:
    result = run_case(name, ground, list(PYTHON_DEVICE), tmp_path)
    assert result.passed, f"expected {result.expected}; seen: {result.seen}\n{result.stderr}"
    assert result.checked


@pytest.mark.parametrize(
    ("name", "defect", "seen"),
    [
        pytest.param(
            *values, marks=() if values[1] == "starts_uploads_anew" else pytest.mark.slow, id="-".join(values[:2])
        )
        for values in DEFECTS
    ],
)
def test_a_defect_fails_the_case_that_is_about_it(
    name: str, defect: str, seen: str, ground: Ground, tmp_path: Path
) -> None:
    result = run_case(name, ground, [sys.executable, str(BROKEN_DEVICE), defect], tmp_path)
    assert not result.passed, f"{defect} passed: {result.checked}"
    assert seen in result.seen, f"expected {result.expected}; seen: {result.seen}\n{result.stderr}"
    assert result.attempts == 1


def test_every_case_has_a_defect_that_fails_it() -> None:
    assert {name for name, _, _ in DEFECTS} == {case.name for case in CASES}


def test_the_default_command_is_this_pythons_device() -> None:
    assert shlex.join(PYTHON_DEVICE).startswith(sys.executable)
