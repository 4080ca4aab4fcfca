"""The device's end of the connection: calls that are tried again while the coordinator is silent, up to a bound."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import grpc

from chainfed.core.errors import METADATA_KEY, UnreachableError
from chainfed.core.manifest import FORMAT_VERSION
from chainfed.core.rpc import CHANNEL_OPTIONS, RpcFailure, error_of
from chainfed.harness.outcome import EvaluationOutcome
from chainfed.v1 import device_service_pb2 as pb
from chainfed.v1 import device_service_pb2_grpc as pb_grpc

Result = TypeVar("Result")
OnRetry = Callable[[str], None]

CALL_SECONDS = 30.0
_CHECK_IN_SECONDS = 15.0  # The coordinator holds a check-in until there is work, well within this deadline.
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 3.0
_OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def device_id_of(device_key: str) -> str:
    """The identity that the coordinator derives from a device's key: 16 hexadecimal digits."""
    return hashlib.sha256(f"chainfed-device/{device_key}".encode()).hexdigest()[:16]


class Coordinator:
    """Calls to one coordinator. Make it in the process that uses it: a channel does not survive a fork."""

    def __init__(self, address: str, patience_seconds: float, on_retry: OnRetry = lambda message: None) -> None:
        """Connects lazily. address: HOST:PORT. patience_seconds: how long a silence may last before a call fails."""
        self.address = address
        self._patience, self._on_retry = patience_seconds, on_retry
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self.stub = pb_grpc.DeviceServiceStub(self._channel)
        self.device_id = ""

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def attempt(self, action: Callable[[], Result], progress: Callable[[], Any] = lambda: None) -> Result:
        """Runs `action` and, while the coordinator is silent, again with growing pauses.

        action: safe to repeat. progress: any value; whenever it has changed, the patience begins anew. Raises the
        coordinator's own error at once, and UnreachableError when the silence lasted longer than the patience.
        """
        silent_since = time.monotonic()
        pause = _FIRST_PAUSE_SECONDS
        seen = progress()
        told = False
        while True:
            try:
                return action()
            except grpc.RpcError as failure:
                if _is_answer(failure):
                    raise error_of(failure, self.address) from failure
                if progress() != seen:
                    seen, silent_since, pause = progress(), time.monotonic(), _FIRST_PAUSE_SECONDS
                silence = time.monotonic() - silent_since
                if silence + pause > self._patience:
                    raise _unreachable(failure, self.address, silence) from failure
                if not told:
                    told = True
                    self._on_retry(f"The coordinator at {self.address} does not answer; trying again.")
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def enrol(self, device_key: str, model: str) -> str:
        """Makes the device known and remembers its identity, which it returns."""
        request = pb.EnrolRequest(device_key=device_key, model=model[:128], bundle_format_version=FORMAT_VERSION)
        response = self.attempt(lambda: self.stub.Enrol(request, timeout=CALL_SECONDS))
        self.device_id = response.device_id
        return self.device_id

    def check_in(self, memory_budget_bytes: int, num_train: int, num_test: int) -> pb.CheckInResponse:
        """Asks for work."""
        request = pb.CheckInRequest(
            device_id=self.device_id,
            memory_budget_bytes=memory_budget_bytes,
            num_train_examples=num_train,
            num_test_examples=num_test,
        )
        return self.attempt(lambda: self.stub.CheckIn(request, timeout=_CHECK_IN_SECONDS))

    def submit_profile(self, assignment_id: str, num_examples: int, scores: tuple[float, ...], data: bytes) -> None:
        """Hands in FOAT's scores and statistics (safetensors bytes)."""
        request = pb.SubmitProfileRequest(
            device_id=self.device_id,
            assignment_id=assignment_id,
            num_examples=num_examples,
            scores=scores,
            statistics=data,
        )
        self.attempt(lambda: self.stub.SubmitProfile(request, timeout=CALL_SECONDS))

    def submit_evaluation(self, assignment_id: str, outcome: EvaluationOutcome) -> None:
        """Hands in counts."""
        request = pb.SubmitEvaluationRequest(
            device_id=self.device_id,
            assignment_id=assignment_id,
            num_examples=outcome.num_examples,
            num_correct=outcome.num_correct,
            loss_sum=outcome.loss_sum,
        )
        self.attempt(lambda: self.stub.SubmitEvaluation(request, timeout=CALL_SECONDS))

    def abandon(self, assignment_id: str, reason: pb.AbandonReason, detail: str) -> None:
        """Gives an assignment back."""
        request = pb.AbandonRequest(
            device_id=self.device_id, assignment_id=assignment_id, reason=reason, detail=detail[:1024]
        )
        self.attempt(lambda: self.stub.Abandon(request, timeout=CALL_SECONDS))


def _is_answer(failure: grpc.RpcError) -> bool:
    """True when the coordinator itself refused, false when the connection or the process behind it failed."""
    if not isinstance(failure, RpcFailure):
        return False
    if any(key == METADATA_KEY for key, _ in failure.trailing_metadata() or ()):
        return True
    return getattr(failure.code(), "name", "") in ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")


def _unreachable(failure: grpc.RpcError, address: str, seconds: float) -> Exception:
    error = error_of(failure, address)
    if isinstance(error, UnreachableError):
        return UnreachableError(f"{error} (Tried for {seconds:.0f} s.)")
    return error
