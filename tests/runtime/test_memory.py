"""What the memory readings say about memory that is known."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chainfed.runtime import memory

MEGABYTE = 1_000_000

pytestmark = pytest.mark.skipif(memory.anonymous_bytes() == 0, reason="the system does not tell RssAnon")


def test_own_memory_is_anonymous() -> None:
    before = memory.anonymous_bytes()
    block = b"x" * (30 * MEGABYTE)
    assert 29 * MEGABYTE < memory.anonymous_bytes() - before < 40 * MEGABYTE
    del block
    memory.trim()
    assert memory.anonymous_bytes() - before < 5 * MEGABYTE


def test_a_mapped_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (30 * MEGABYTE))
    anonymous, in_files = memory.anonymous_bytes(), memory.file_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) > 0
        assert memory.file_bytes() - in_files > 25 * MEGABYTE
        assert memory.anonymous_bytes() - anonymous < 5 * MEGABYTE


def test_the_sampler_sees_a_peak_that_is_over() -> None:
    with memory.PeakSampler() as sampler:
        assert sampler.peak_bytes < 2 * MEGABYTE
        block = b"x" * (40 * MEGABYTE)
        time.sleep(0.2)
        del block
        memory.trim()
        first = sampler.peak_bytes
    assert 39 * MEGABYTE < first < 50 * MEGABYTE
    assert sampler.peak_bytes == first


def test_the_sampler_sees_what_happens_while_pythons_lock_is_held() -> None:
    """A compiled regular expression that runs for long holds the lock, as a program on the runtime does."""
    code = """
import ctypes, time
from chainfed.runtime import memory
libc = ctypes.PyDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
with memory.PeakSampler() as sampler:
    block = libc.malloc(50_000_000)
    libc.memset(block, 1, 50_000_000)
    libc.usleep(300_000)
    libc.free(block)
    memory.trim()
print(sampler.peak_bytes)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 49 * MEGABYTE < int(found.stdout) < 60 * MEGABYTE


def test_the_samplers_helper_ends_with_the_process_that_it_watches() -> None:
    code = """
import os, signal
from chainfed.runtime.memory import PeakSampler
sampler = PeakSampler().__enter__()
print(sampler._helper.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    helper = int(found.stdout)
    for _ in range(100):
        if not Path(f"/proc/{helper}/stat").exists() or "Z" in Path(f"/proc/{helper}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    os.kill(helper, 9)
    pytest.fail("the helper outlived its process")
