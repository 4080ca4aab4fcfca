"""A coordinator that looks at who comes, and a run over the one device that comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chainfed.coordinator.app import in_background
from chainfed.coordinator.certificate import ServerCertificate
from chainfed.coordinator.client import OperatorClient
from chainfed.coordinator.enrolment_tokens import EnrolmentTokens
from chainfed.core.manifest import Bundle
from chainfed.core.transport import Transport
from chainfed.v1 import run_service_pb2 as pb
from tests.certificates import Authority

TOKEN = "spring 2026"


@contextmanager
def guarded_coordinator(authority: Authority, folder: Path) -> Iterator[str]:
    """The address of a coordinator with TLS and one token."""
    tokens = folder / "tokens"
    tokens.write_text(TOKEN + "\n")
    certificate = ServerCertificate(*authority.issue(folder, "127.0.0.1"))
    with in_background(folder / "state", certificate=certificate, tokens=EnrolmentTokens(tokens)) as address:
        yield address


@contextmanager
def started(address: str, bundle: Bundle, transport: Transport | None = None) -> Iterator[tuple[OperatorClient, str]]:
    """A run over one device that is about to come."""
    config = pb.RunConfig(rounds=2, devices_per_round=1, min_devices=1, seed=5, window_size=2)
    with OperatorClient(address, transport) as operator:
        run_id = operator.create(bundle, config).run_id
        operator.start(run_id)
        yield operator, run_id


def rows(data: Any, folder: Path) -> list[str]:
    """The options of a device with some of the rows."""
    options = []
    for option, path in (("--data", data.train), ("--test-data", data.test)):
        part = folder / f"{option.strip('-')}.jsonl"
        part.write_text("".join(path.read_text().splitlines(keepends=True)[:13]))
        options += [option, str(part)]
    return options
