"""The processes of an emulation: one coordinator and many devices, watched, and started again when something kills
them."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from chainfed.core.errors import EXIT_INTERNAL, ChainFedError, RunFailedError
from chainfed.harness.command_device import CommandDevice
from chainfed.harness.compute_slots import ComputeSlots
from chainfed.harness.device import DeviceSettings, run_device

LOOPBACK = "127.0.0.1:0"
"""A free port that this machine alone reaches."""

_START_SECONDS = 60.0
OWN_DEVICE = "chainfed"
"""Stands for ChainFed's own device among the commands of a fleet."""

_STOP_SECONDS = 10.0
_MAX_RESTARTS = 20


class CoordinatorProcess:
    """`chainfed coordinator` as a child process on a loopback port of its own choice; started again on that port when
    it is killed."""

    def __init__(self, state_folder: Path, log_file: Path, listen: str = LOOPBACK) -> None:
        """Raises RunFailedError when it does not come up within a minute."""
        self._state_folder = state_folder
        self._log_file = log_file
        self.restarts = 0
        self._process, self.address = self._start(listen)

    @property
    def pid(self) -> int:
        """Process id of the coordinator."""
        return self._process.pid

    def revive(self) -> None:
        """Starts it again when it has been killed. Raises RunFailedError when it has left by itself."""
        code = self._process.poll()
        if code is None:
            return
        if code >= 0 or self.restarts == _MAX_RESTARTS:
            raise RunFailedError(f"The coordinator left with exit code {code}; its last words are in {self._log_file}.")
        self.restarts += 1
        self._process, _ = self._start(self.address)

    def stop(self) -> None:
        """Ends it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self, listen: str) -> tuple[subprocess.Popen[bytes], str]:
        command = [
            sys.executable,
            "-m",
            "chainfed.core",
            "coordinator",
            "--state",
            str(self._state_folder),
            "--listen",
            listen,
            "--insecure-listen",
            "--json",
        ]
        with self._log_file.open("ab") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        line = process.stdout.readline() if ready else b""
        if not line:
            process.kill()
            process.wait()
            raise RunFailedError(f"The coordinator did not start; its last words are in {self._log_file}.")
        return process, str(json.loads(line)["listening"])


@dataclass
class _Member:
    settings: DeviceSettings
    command: str
    process: BaseProcess | CommandDevice
    restarts: int = 0


class DeviceFleet:
    """Device processes: ChainFed's own, forked from one server process that has loaded the runtime once, and others."""

    def __init__(
        self,
        devices: Sequence[DeviceSettings],
        slots_folder: Path,
        workers: int,
        commands: Sequence[str] = (OWN_DEVICE,),
    ) -> None:
        """workers: how many of ChainFed's own devices may compute at the same time. commands: of devices, in turn."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._slots_folder = slots_folder
        self._workers = workers
        chosen = [commands[index % len(commands)] for index in range(len(devices))]
        self._members = [
            _Member(settings, command, self._start(settings, command))
            for settings, command in zip(devices, chosen, strict=True)
        ]

    @property
    def restarts(self) -> int:
        """How often a device was started again."""
        return sum(member.restarts for member in self._members)

    @property
    def pids(self) -> list[int]:
        """Process ids of the devices that run."""
        return [
            member.process.pid
            for member in self._members
            if member.process.pid is not None and member.process.is_alive()
        ]

    def revive(self) -> None:
        """Starts killed devices again. Raises RunFailedError when a device has left with an error of its own."""
        for member in self._members:
            code = member.process.exitcode
            if code is None or code == 0:
                continue
            log = device_log(member.settings)
            if code > 0 or member.restarts == _MAX_RESTARTS:
                raise RunFailedError(
                    f"Device {member.settings.device_key} left with exit code {code}: {_last_line(log)} (log: {log})."
                )
            member.restarts += 1
            member.process = self._start(member.settings, member.command)

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Waits a moment for devices that leave by themselves, then ends the others."""
        limit = time.monotonic() + grace_seconds
        for member in self._members:
            member.process.join(max(0.0, limit - time.monotonic()))
        for member in self._members:
            if member.process.is_alive():
                member.process.kill()
            member.process.join()

    def _start(self, settings: DeviceSettings, command: str) -> BaseProcess | CommandDevice:
        if command != OWN_DEVICE:
            return CommandDevice(command, settings, device_log(settings))
        process = self._context.Process(
            target=_device_main, args=(settings, self._slots_folder, self._workers), daemon=True
        )
        process.start()
        return process


def device_log(settings: DeviceSettings) -> Path:
    """Where an emulated device writes what it has to say."""
    return settings.state_folder / "device.log"


def _device_main(settings: DeviceSettings, slots_folder: Path, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings.state_folder.mkdir(parents=True, exist_ok=True)
    code = 0
    with device_log(settings).open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        os.dup2(log.fileno(), 2)
        try:
            run_device(
                settings,
                ComputeSlots(slots_folder, workers),
                lambda event: print(f"{event.kind}: {event.message}", file=log),
            )
        except ChainFedError as error:
            print(str(error), file=log)
            code = error.exit_code or EXIT_INTERNAL
    sys.exit(code)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "it said nothing"
