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
from chainfed.core.signing import SigningKey, evaluation_text, profile_text
from chainfed.core.tensors import sha256_hex
from chainfed.core.transport import Transport, choose_transport
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

    def __init__(
        self,
        address: str,
        patience_seconds: float,
        on_retry: OnRetry = lambda message: None,
        transport: Transport | None = None,
        signing_key: SigningKey | None = None,
    ) -> None:
        """Connects lazily. address: HOST:PORT. patience_seconds: how long a silence may last before a call fails.
        transport: None speaks in plain text to this machine and TLS to every other. signing_key: None signs nothing.
        """
        self.address = address
        self._patience, self._on_retry = patience_seconds, on_retry
        self._channel = _channel(address, transport or choose_transport(address))
        self._signing_key = signing_key
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
                    self._on_retry(f"{error_of(failure, self.address)} (Trying again.)")
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def enrol(self, device_key: str, model: str, enrolment_token: str = "") -> str:
        """Makes the device known and remembers its identity, which it returns. Raises UnauthorizedError when the
        coordinator asks for another token of a new device, or knows the device by another signing key."""
        request = pb.EnrolRequest(
            device_key=device_key,
            model=model[:128],
            bundle_format_version=FORMAT_VERSION,
            enrolment_token=enrolment_token,
            public_key=self._signing_key.public_key if self._signing_key is not None else b"",
        )
        response = self.attempt(lambda: self.stub.Enrol(request, timeout=CALL_SECONDS))
        self.device_id = response.device_id
        return self.device_id

    def sign(self, text: str) -> bytes:
        """The device's signature of a text; empty when it signs nothing."""
        return b"" if self._signing_key is None else self._signing_key.sign(text)

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
            signature=self.sign(profile_text(assignment_id, sha256_hex(data), num_examples, scores)),
        )
        self.attempt(lambda: self.stub.SubmitProfile(request, timeout=CALL_SECONDS))

    def submit_evaluation(self, assignment_id: str, outcome: EvaluationOutcome) -> None:
        """Hands in counts."""
        counts = (outcome.num_examples, outcome.num_correct, outcome.loss_sum)
        request = pb.SubmitEvaluationRequest(
            device_id=self.device_id,
            assignment_id=assignment_id,
            num_examples=outcome.num_examples,
            num_correct=outcome.num_correct,
            loss_sum=outcome.loss_sum,
            signature=self.sign(evaluation_text(assignment_id, *counts)),
        )
        self.attempt(lambda: self.stub.SubmitEvaluation(request, timeout=CALL_SECONDS))

    def abandon(self, assignment_id: str, reason: pb.AbandonReason, detail: str) -> None:
        """Gives an assignment back."""
        request = pb.AbandonRequest(
            device_id=self.device_id, assignment_id=assignment_id, reason=reason, detail=detail[:1024]
        )
        self.attempt(lambda: self.stub.Abandon(request, timeout=CALL_SECONDS))


def _channel(address: str, transport: Transport) -> grpc.Channel:
    if not transport.encrypted:
        return grpc.insecure_channel(address, options=_OPTIONS)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(transport.root_certificates), options=_OPTIONS)


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
