"""The one tree of errors: exception, gRPC status and process exit code are drawn together here.

Every error that a user can cause carries one sentence: what was wrong, where, and what to do. `code` travels in gRPC
trailing
metadata under `METADATA_KEY`, so that a client raises the same class that the server raised.
"""

from __future__ import annotations

from typing import ClassVar

METADATA_KEY = "chainfed-error"

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class ChainFedError(Exception):
    """Base of every expected failure. `str(error)` is the sentence for the user."""

    code: ClassVar[str] = "CHAINFED_ERROR"
    grpc_status: ClassVar[str] = "UNKNOWN"
    exit_code: ClassVar[int] = EXIT_INTERNAL


class BadInputError(ChainFedError):
    """An option, a data file or a request that cannot be used."""

    code = "BAD_INPUT"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 3


class ModelError(ChainFedError):
    """A folder that is no model, or a model that cannot be used."""

    code = "MODEL"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 4


class BundleError(ChainFedError):
    """A bundle that is damaged, incomplete or made for another version."""

    code = "BUNDLE"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 5


class VerificationError(ChainFedError):
    """Programs that do not agree with PyTorch within the tolerance."""

    code = "VERIFICATION"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 6


class UnreachableError(ChainFedError):
    """A coordinator that does not answer."""

    code = "UNREACHABLE"
    grpc_status = "UNAVAILABLE"
    exit_code = 7


class AddressInUseError(ChainFedError):
    """A port that another process holds, or a state folder that another coordinator holds."""

    code = "ADDRESS_IN_USE"
    grpc_status = "UNAVAILABLE"
    exit_code = 8


class MemoryBudgetError(ChainFedError):
    """A memory budget in which not even one layer can be trained."""

    code = "MEMORY_BUDGET"
    grpc_status = "RESOURCE_EXHAUSTED"
    exit_code = 9


class RunFailedError(ChainFedError):
    """A run that cannot go on."""

    code = "RUN_FAILED"
    grpc_status = "ABORTED"
    exit_code = 10


class MissingExtraError(ChainFedError):
    """A command whose packages are not installed."""

    code = "MISSING_EXTRA"
    grpc_status = "UNIMPLEMENTED"
    exit_code = 11


class NotFoundError(ChainFedError):
    """A run, device, assignment, blob or file that does not exist."""

    code = "NOT_FOUND"
    grpc_status = "NOT_FOUND"
    exit_code = 12


class ConflictError(ChainFedError):
    """A request that the present state does not allow."""

    code = "CONFLICT"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 13


class UpdateRejectedError(ChainFedError):
    """A device's result that does not count: wrong names, shapes, dtype, hash, size, or values that are not finite."""

    code = "UPDATE_REJECTED"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 14


class NotFiniteError(ChainFedError):
    """Training that left the finite numbers."""

    code = "NOT_FINITE"
    grpc_status = "ABORTED"
    exit_code = 15


class InteropError(ChainFedError):
    """A device that fails cases of `chainfed interop`."""

    code = "INTEROP"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 16


class UnauthorizedError(ChainFedError):
    """A device that is not admitted: no valid enrolment token, another key than its own, or a signature that is not
    its."""

    code = "UNAUTHORIZED"
    grpc_status = "UNAUTHENTICATED"
    exit_code = 17


def error_classes() -> tuple[type[ChainFedError], ...]:
    """All classes of the tree below `ChainFedError`, in order of exit code."""
    found: list[type[ChainFedError]] = []
    pending = [ChainFedError]
    while pending:
        for subclass in pending.pop().__subclasses__():
            found.append(subclass)
            pending.append(subclass)
    return tuple(sorted(found, key=lambda cls: cls.exit_code))


def error_from_code(code: str, message: str) -> ChainFedError:
    """The exception that a peer named by `code`; `ChainFedError` itself when this version does not know the code."""
    by_code = {cls.code: cls for cls in error_classes()}
    return by_code.get(code, ChainFedError)(message)
