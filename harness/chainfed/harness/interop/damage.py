"""Cases in which bytes are not what they should be."""

from __future__ import annotations

import json
import re
from typing import Any

from chainfed.core.errors import BundleError
from chainfed.core.manifest import FORMAT_VERSION
from chainfed.core.tensors import sha256_hex
from chainfed.harness.interop.case import Case, Stand, require_bytes
from chainfed.harness.interop.proxy import Meddler
from chainfed.harness.interop.state_folder import halve
from chainfed.harness.interop.traffic import Call
from chainfed.harness.interop.trial import NotSetUp, Trial, require
from chainfed.v1 import blob_pb2
from chainfed.v1 import device_service_pb2 as pb

_FUTURE_VERSION = 99
_NUMBER = re.compile(r"(?<![\w.:])\d+(?!\w|[.:]\d)")  # that stands alone, not in an address or a hash


class _DamageBlob(Meddler):
    """Changes a byte within every piece of a blob, which stays a readable file."""

    def __init__(self, sha256: str) -> None:
        self._sha256 = sha256

    async def piece(self, call: Call, position: int, data: bytes) -> bytes:
        if call.request.sha256 != self._sha256 or not data:
            return data
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class BadShard(Case):
    """See `sentence`."""

    name = "BAD_SHARD"
    sentence = "The coordinator's bytes of a weight file are damaged: fetched twice at most, given back, exit code 5."

    def run(self, stand: Stand) -> list[str]:
        """Damages the last layer's file."""
        assignment = stand.ground.first.assignment
        shard = max((file for file in assignment.files if "/layer_" in file.name), key=lambda file: file.name)
        with stand.trial(_DamageBlob(shard.blob.sha256)) as trial:
            trial.start_device()
            code = trial.exit_code(f"the device to end because of {shard.name}")
            passed = sum(call.num_bytes for call in trial.traffic.fetches(shard.blob.sha256))
            if not passed:
                raise NotSetUp(f"the device ended without having fetched {shard.name}: {trial.last_words}")
            _require_bad_bundle(trial, code)
            times = passed / shard.blob.size_bytes
            require(times <= 2, "the file to be fetched twice at most", f"{times:.2f} times its bytes")
            require(shard.name in trial.last_words, f"a sentence that names {shard.name}", trial.last_words)
        return [f"{shard.name} fetched {times:g} times, BAD_BUNDLE, exit code 5, one sentence that names it"]


class _FutureManifest(Meddler):
    """Gives every assignment a manifest of a format version that does not exist yet."""

    def __init__(self, manifest: bytes) -> None:
        document = json.loads(manifest) | {"format_version": _FUTURE_VERSION}
        self._data = json.dumps(document).encode()
        self._ref = blob_pb2.BlobRef(sha256=sha256_hex(self._data), size_bytes=len(self._data))

    async def answer(self, call: Call, message: Any) -> Any:
        if call.method == "CheckIn" and message.HasField("assignment"):
            message.assignment.manifest.CopyFrom(self._ref)
        return message

    async def blob(self, call: Call) -> bytes | None:
        return self._data if call.request.sha256 == self._ref.sha256 else None


class UnknownBundleVersion(Case):
    """See `sentence`."""

    name = "UNKNOWN_BUNDLE_VERSION"
    sentence = (
        f"The manifest has format version {_FUTURE_VERSION}: given back, exit code 5, and told which can be read."
    )

    def run(self, stand: Stand) -> list[str]:
        """Changes the manifest on its way."""
        with stand.trial(_FutureManifest(stand.ground.bundle.manifest_bytes)) as trial:
            trial.start_device()
            code = trial.exit_code(f"the device to end because of format version {_FUTURE_VERSION}")
            _require_bad_bundle(trial, code)
            numbers = set(_NUMBER.findall(trial.last_words))
            require(
                {str(_FUTURE_VERSION), str(FORMAT_VERSION)} <= numbers,
                f"a sentence that names version {_FUTURE_VERSION} and the newest readable one, {FORMAT_VERSION}",
                trial.last_words,
            )
        return ["BAD_BUNDLE, exit code 5, one sentence with both versions"]


def _require_bad_bundle(trial: Trial, code: int) -> None:
    """Raises CaseFailed unless the device gave the assignment back for its bundle and ended with one sentence."""
    device = trial.device
    assert device is not None
    require(
        code == BundleError.exit_code,
        f"exit code {BundleError.exit_code}",
        f"exit code {code}: {trial.last_words}",
    )
    reasons = [pb.AbandonReason.Name(call.request.reason) for call in trial.traffic.of("Abandon")]
    require(reasons == ["ABANDON_REASON_BAD_BUNDLE"], "one Abandon with BAD_BUNDLE", reasons or "no Abandon")
    submitted = trial.traffic.of("SubmitUpdate")
    require(not submitted, "no update", f"{len(submitted)} calls of SubmitUpdate")
    require(not device.has_traceback, "one sentence on standard error", "a traceback")
    require(device.last_line.endswith("."), "a sentence at the end of standard error", trial.last_words)


class TruncatedCache(Case):
    """See `sentence`."""

    name = "TRUNCATED_CACHE"
    sentence = (
        "Between two assignments files of the state folder are cut in half: fetched or computed again, same bytes."
    )

    def run(self, stand: Stand) -> list[str]:
        """Cuts half of the blobs that the next assignment needs again, and all kept hidden states."""
        first, last = stand.ground.first, stand.ground.last
        with stand.trial() as trial:
            header = self._once(trial, first.assignment.round, "its first assignment")
            require_bytes(trial, header, first)
            kept = sorted((trial.state / "cache").glob("*"))
            files = _cut(trial, "files", _shared(first.assignment.files, last.assignment.files))
            pieces = _cut(trial, "pieces", _shared(first.assignment.state, last.assignment.state))
            for path in kept:
                halve(path)
            since = len(trial.traffic.calls)
            header = self._once(trial, last.assignment.round, "its second assignment, with truncated files")
            same = require_bytes(trial, header, last)
            for what, (cut, whole) in {"files": files, "pieces": pieces}.items():
                fetched = {call.request.sha256 for call in trial.traffic.of("FetchBlob", since=since)}
                require(cut <= fetched, f"all {len(cut)} truncated {what} to be fetched again", f"{len(cut & fetched)}")
                require(not whole & fetched, f"{what} that are whole not to be fetched", f"{len(whole & fetched)} were")
        return [f"{len(files[0])} files, {len(pieces[0])} pieces and {len(kept)} kept depths truncated", same]

    @staticmethod
    def _once(trial: Trial, round_number: int, what: str) -> pb.UpdateHeader:
        trial.start_device(once=True)
        header = trial.update(trial.assignment(round_number))
        code = trial.exit_code(f"the device to end after {what}")
        require(code == 0, f"exit code 0 after {what}", f"exit code {code}: {trial.last_words}")
        return header


def _shared(first: Any, second: Any) -> list[str]:
    """SHA-256 of the blobs that both assignments name, in the order of their names."""
    again = {named.blob.sha256 for named in second}
    return [named.blob.sha256 for named in sorted(first, key=lambda named: named.name) if named.blob.sha256 in again]


def _cut(trial: Trial, folder: str, blobs: list[str]) -> tuple[set[str], set[str]]:
    """Truncates every second of the blobs in a folder; which were cut, and which were not."""
    cut, whole = set(blobs[::2]), set(blobs[1::2])
    for sha256 in cut:
        path = trial.state / folder / sha256
        if not path.is_file():
            raise NotSetUp(f"the device keeps no {folder}/{sha256[:16]}... in its state folder")
        halve(path)
    if not cut:
        raise NotSetUp(f"the two assignments have no {folder} in common")
    return cut, whole - cut
