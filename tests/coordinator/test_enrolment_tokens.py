"""New devices are admitted with a token of the operator's file; known ones need none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainfed.coordinator.app import in_background
from chainfed.coordinator.enrolment_tokens import EnrolmentTokens
from chainfed.core.errors import BadInputError, UnauthorizedError
from chainfed.v1 import device_service_pb2 as pb
from tests.coordinator.conftest import FakeDevice, raised


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    write(path, "# the app of spring", "", "spring 2026", "  autumn  ")
    return path


@pytest.fixture
def guarded(tmp_path: Path, file: Path) -> Iterator[str]:
    with in_background(tmp_path / "state", tokens=EnrolmentTokens(file)) as address:
        yield address


def write(path: Path, *lines: str) -> None:
    part = path.with_suffix(".part")
    part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    part.replace(path)


def test_only_the_files_tokens_are_valid(file: Path) -> None:
    tokens = EnrolmentTokens(file)
    assert tokens.admits("spring 2026")
    assert tokens.admits("autumn")
    for wrong in ("", "spring", "spring 2026 ", "Autumn", "# the app of spring", "spring 2026\nautumn", "ä"):
        assert not tokens.admits(wrong), wrong


def test_the_file_is_read_again_when_it_changes(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = EnrolmentTokens(file)
    write(file, "winter")
    with caplog.at_level(logging.INFO, "chainfed"):
        assert tokens.admits("winter")
        assert not tokens.admits("autumn")
        assert [record.getMessage() for record in caplog.records] == ["enrolment tokens read"]
        file.unlink()
        assert not tokens.admits("winter")
        assert not tokens.admits("winter")
        assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]
        write(file, "winter", "x" * 4097)
        assert not tokens.admits("winter")
        assert "line 2 has 4097 characters" in vars(caplog.records[-1])["detail"]
    assert "winter" not in caplog.text
    write(file, "winter")
    assert tokens.admits("winter")


def test_a_file_without_tokens_admits_nobody(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    write(path, "# none", "")
    assert not EnrolmentTokens(path).admits("")


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="none cannot be read"):
        EnrolmentTokens(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BadInputError, match="not UTF-8"):
        EnrolmentTokens(tmp_path / "bytes")


@pytest.mark.parametrize("token", ["", "wrong", "spring"])
def test_a_new_device_needs_a_token(guarded: str, token: str) -> None:
    with raised(UnauthorizedError) as found:
        FakeDevice(guarded, "new", token=token)
    found.match("admits a new device only with a valid enrolment token")
    right = FakeDevice(guarded, "new", token="autumn")
    assert right.check_in(timeout=1).wait.reason == "there is no run yet"


def test_a_known_device_needs_none(guarded: str, file: Path) -> None:
    known = FakeDevice(guarded, "known", token="autumn")
    write(file, "winter")
    assert FakeDevice(guarded, "known").device_id == known.device_id
    with raised(UnauthorizedError):
        FakeDevice(guarded, "another", token="autumn")
    assert FakeDevice(guarded, "another", token="winter").device_id != known.device_id


def test_a_device_that_was_not_admitted_is_not_known(guarded: str) -> None:
    known = FakeDevice(guarded, "known", token="autumn")
    with raised(UnauthorizedError):
        FakeDevice(guarded, "new")
    for _ in range(2):
        with raised(UnauthorizedError):
            known.service.Enrol(pb.EnrolRequest(device_key="new", bundle_format_version=1), timeout=20)


def test_too_long_a_token_is_refused_by_field(guarded: str) -> None:
    with raised(BadInputError) as found:
        FakeDevice(guarded, "new", token="x" * 4097)
    found.match("enrolment_token has 4097 characters")


def test_without_a_file_every_device_is_admitted(address: str) -> None:
    assert FakeDevice(address, "new", token="anything").device_id == FakeDevice(address, "new").device_id
