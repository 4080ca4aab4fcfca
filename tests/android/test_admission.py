"""The SDK's device at a coordinator that speaks TLS, asks for a token and holds it to its key."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chainfed.coordinator.app import in_background
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import sha256_hex
from chainfed.core.transport import Transport
from chainfed.harness.device import DeviceSettings, run_device
from tests.admission import TOKEN, guarded_coordinator, rows, started
from tests.certificates import Authority

KEY = "the device"


def run(device: Path, *options: object) -> tuple[int, str]:
    """Exit code and last line of standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHAINFED_")}
    command = [str(device), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, done.stderr.strip().rpartition("\n")[2]


def test_tls_token_and_signatures_end_with_the_python_devices_bytes(
    jvm_device: Path, tiny_bundle: Bundle, tiny_data: Any, tmp_path: Path
) -> None:
    authority = Authority()
    ca, data = authority.write(tmp_path / "ca.pem"), rows(tiny_data, tmp_path)
    with (
        guarded_coordinator(authority, tmp_path) as address,
        started(address, tiny_bundle, Transport(True, authority.pem)) as (operator, run_id),
    ):
        options = ["--coordinator", address, "--ca", ca, "--state", tmp_path / "kotlin", "--key", KEY, *data]
        # The first process enrols with the token; the second one is known by its key.
        for more in (["--enrolment-token", TOKEN, "--once"], []):
            code, said = run(jvm_device, *options, *more)
            assert code == 0, said
        signed = operator.checkpoint(run_id)
        (tmp_path / "kotlin" / "device-key").unlink()
        code, said = run(jvm_device, *options, "--enrolment-token", TOKEN)
        assert code == 17
        assert "another public key before" in said
    train, test = map(Path, data[1::2])
    with in_background(tmp_path / "plain") as address, started(address, tiny_bundle) as (operator, run_id):
        run_device(DeviceSettings(address, tmp_path / "python", train_file=train, test_file=test, device_key=KEY))
        assert sha256_hex(operator.checkpoint(run_id)) == sha256_hex(signed)


def test_who_is_not_trusted_is_told_so_in_a_sentence(jvm_device: Path, tiny_data: Any, tmp_path: Path) -> None:
    authority = Authority()
    ca, wrong = authority.write(tmp_path / "ca.pem"), Authority("another").write(tmp_path / "wrong.pem")
    device = ["--state", tmp_path / "device", "--patience", "0.3", *rows(tiny_data, tmp_path)]
    with guarded_coordinator(authority, tmp_path) as address:
        for options, code, words in (
            (["--ca", ca], 17, "valid enrolment token"),
            (["--ca", ca, "--enrolment-token", "autumn"], 17, "valid enrolment token"),
            (["--ca", wrong, "--enrolment-token", TOKEN], 7, "certificate"),
            (["--tls", "--enrolment-token", TOKEN], 7, "certificate"),
        ):
            found, said = run(jvm_device, "--coordinator", address, *device, *options)
            assert found == code, said
            assert words in said
    with in_background(tmp_path / "plain") as address:
        found, said = run(jvm_device, "--coordinator", address, *device, "--tls")
        assert (found, "does not speak TLS" in said) == (7, True), said


@pytest.mark.parametrize("options", [["--tls", "--insecure"], ["--ca", "does-not-exist.pem"]])
def test_options_that_cannot_be_are_one_sentence(
    jvm_device: Path, tiny_data: Any, tmp_path: Path, options: list[str]
) -> None:
    place = ["--coordinator", "127.0.0.1:9", "--state", tmp_path / "device", *rows(tiny_data, tmp_path)]
    code, said = run(jvm_device, *place, *options)
    assert code == 3
    assert said.startswith("Error: ")
