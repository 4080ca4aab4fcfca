"""What passed between a device and the coordinator, call by call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from chainfed.v1 import device_service_pb2 as pb

Ending = Literal["under way", "answered", "refused", "lost"]


@dataclass
class Call:
    """One call of the device.

    request: the message; of SubmitUpdate the header. answer: the message that went to the device, of the last piece for
    FetchBlob. num_bytes: bytes of blobs or updates that passed. ending: "refused" is a status other than OK, "lost" a
    connection that went away, by the proxy's doing or not.
    """

    method: str
    request: Any
    answer: Any = None
    num_bytes: int = 0
    ending: Ending = "under way"


@dataclass
class Traffic:
    """The calls in the order in which they began. Written by the proxy's thread, read by others."""

    calls: list[Call] = field(default_factory=list)

    def of(self, *methods: str, since: int = 0) -> list[Call]:
        """The calls of some methods, from call number `since` on."""
        return [call for call in self.calls[since:] if call.method in methods]

    def assignments(self, since: int = 0) -> list[pb.Assignment]:
        """The assignments that were handed out, each as often as it was."""
        return list(self._assignments(since))

    def _assignments(self, since: int) -> Iterator[pb.Assignment]:
        for call in self.of("CheckIn", since=since):
            if call.answer is not None and call.answer.HasField("assignment"):
                yield call.answer.assignment

    def about(self, assignment_id: str, since: int = 0) -> list[Call]:
        """The calls that hand in the update of an assignment: QueryUpload and SubmitUpdate."""
        uploads = self.of("QueryUpload", "SubmitUpdate", since=since)
        return [call for call in uploads if call.request.assignment_id == assignment_id]

    def counted(self, assignment_id: str) -> Call | None:
        """The last call that told the device that its update is there and counts."""
        for call in reversed(self.about(assignment_id)):
            if call.ending == "answered" and getattr(call.answer, "counted", False):
                return call
            if call.ending == "answered" and getattr(call.answer, "accepted", False):
                return call
        return None

    def update(self, assignment_id: str) -> pb.UpdateHeader | None:
        """The last header of an update for an assignment."""
        calls = [call for call in self.about(assignment_id) if call.method == "SubmitUpdate"]
        return calls[-1].request if calls else None

    def fetches(self, sha256: str, since: int = 0) -> list[Call]:
        """The downloads of a blob."""
        return [call for call in self.of("FetchBlob", since=since) if call.request.sha256 == sha256]
