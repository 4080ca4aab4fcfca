"""The error tree is drawn once: exception, gRPC status, exit code and the table in docs/errors.md agree."""

from pathlib import Path

import grpc
import pytest

from chainfed.core.errors import ChainFedError, error_classes, error_from_code

TABLE = Path(__file__).parents[2] / "docs" / "errors.md"


def test_every_error_has_its_own_code_and_exit_code() -> None:
    classes = error_classes()
    assert len(classes) >= 13
    assert len({cls.code for cls in classes}) == len(classes)
    assert len({cls.exit_code for cls in classes}) == len(classes)
    assert all(cls.exit_code not in (0, 1, 2, 130) for cls in classes)


@pytest.mark.parametrize("cls", [ChainFedError, *error_classes()])
def test_error_survives_the_wire_and_is_documented(cls: type[ChainFedError]) -> None:
    assert cls.grpc_status in grpc.StatusCode.__members__
    restored = error_from_code(cls.code, "what, where, what to do")
    assert type(restored) is cls
    assert str(restored) == "what, where, what to do"
    assert f"| {cls.exit_code} | `{cls.code}` | {cls.grpc_status} |" in TABLE.read_text()


def test_unknown_code_of_a_newer_peer_is_still_an_error() -> None:
    assert type(error_from_code("FROM_THE_FUTURE", "text")) is ChainFedError
