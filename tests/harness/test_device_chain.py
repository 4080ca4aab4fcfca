"""Hidden states, journal and slots: whatever moment a process is killed at, it goes on to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chainfed.core.manifest import ProgramEntry, TensorSpec
from chainfed.harness.chain import Chain, KeptDepth
from chainfed.harness.data import TokenData, pad, sample_weights
from chainfed.harness.hidden import HiddenFile, HiddenShape, batch_order
from chainfed.harness.journal import Journal
from chainfed.harness.slots import StateSlots
from chainfed.harness.training import run_steps

LAYERS, BATCH, SEQ, WIDTH = 5, 2, 3, 4


class ToyShard:
    """One layer's weight."""

    def __init__(self, value: float) -> None:
        self.tensors = {"weight": torch.full((WIDTH,), value)}

    def __enter__(self) -> ToyShard:
        return self

    def __exit__(self, *error: object) -> None: ...

    def evict(self) -> None: ...


class ToyBundle:
    """A bundle whose programs are a line of torch each; every layer tells the batches apart and is not linear."""

    manifest = SimpleNamespace(
        shapes=SimpleNamespace(batch_size=BATCH, seq_len=SEQ),
        model=SimpleNamespace(num_layers=LAYERS, hidden_size=WIDTH),
    )

    def __init__(self, slow: float = 0.0) -> None:
        self.slow = slow
        self.runs = 0

    @contextmanager
    def program(self, name: str) -> Iterator[Any]:
        assert name == "embed"
        yield SimpleNamespace(run=self._embed)

    def embeddings(self) -> ToyShard:
        return ToyShard(0.7)

    @contextmanager
    def blocks(self) -> Iterator[ToyBlocks]:
        yield ToyBlocks(self)

    def _embed(self, inputs: dict[str, torch.Tensor], clone_outputs: bool) -> dict[str, torch.Tensor]:
        self._wait()
        return {"h": embed(inputs["input_ids"])}

    def run_layer(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        self._wait()
        return block(h, torch.full((WIDTH,), 1.0 + layer))

    def _wait(self) -> None:
        self.runs += 1
        time.sleep(self.slow)


class ToyBlocks:
    """The layers of a `ToyBundle`."""

    def __init__(self, bundle: ToyBundle) -> None:
        self.bundle = bundle

    def prefetch(self, layer: int) -> None: ...

    @contextmanager
    def layer(self, layer: int, state: object) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
        yield lambda h, mask: self.bundle.run_layer(layer, h)


def embed(ids: torch.Tensor) -> torch.Tensor:
    return torch.sin(ids.float())[..., None] * torch.tensor([0.7, 1.4, 2.1, 2.8])


def block(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.tanh(h.flip(-1) * weight + 0.1)


def oracle(data: TokenData, depth: int) -> torch.Tensor:
    """All examples at once, in memory."""
    h = embed(data.ids)
    for layer in range(depth):
        h = block(h, torch.full((WIDTH,), 1.0 + layer))
    return h


def toy_data(examples: int) -> TokenData:
    ids = torch.arange(examples * SEQ).reshape(examples, SEQ)
    return TokenData(ids, torch.ones((examples, SEQ)), torch.zeros(examples, dtype=torch.int64), BATCH)


def toy_state() -> dict[str, torch.Tensor]:
    return {f"adapters.{i}.{part}": torch.zeros(1) for i in range(LAYERS) for part in ("down", "up")}


def run_chain(folder: Path, data: TokenData, depth: int, kept: KeptDepth | None, bundle: ToyBundle) -> torch.Tensor:
    journal = Journal(folder / "work", {"assignment": "a"})
    with closing(Chain(bundle, toy_state(), data, journal, kept)) as chain:  # type: ignore[arg-type]
        chain.advance_to(depth)
        view = chain.view(depth)
        result = torch.stack([view.row(row) for row in range(len(data))])
    journal.close()
    return result


@pytest.mark.parametrize("examples", [1, 2, 7])
@pytest.mark.parametrize("depth", range(LAYERS + 1))
@pytest.mark.parametrize("kept_depth", [None, 0, 2, 5])
def test_the_chain_computes_every_depth(tmp_path: Path, examples: int, depth: int, kept_depth: int | None) -> None:
    data = toy_data(examples)
    kept = None
    if kept_depth is not None and kept_depth <= depth:
        kept = KeptDepth(kept_depth, tmp_path / "kept", data.num_batches)
    assert torch.equal(run_chain(tmp_path, data, depth, kept, ToyBundle()), oracle(data, depth))


def test_a_kept_depth_saves_the_layers_below_it_and_serves_fewer_batches(tmp_path: Path) -> None:
    data, bundle = toy_data(7), ToyBundle()
    kept = KeptDepth(3, tmp_path / "kept", data.num_batches)
    run_chain(tmp_path / "first", data, 5, kept, bundle)
    assert bundle.runs == 6 * data.num_batches
    assert torch.equal(run_chain(tmp_path / "second", data, 4, kept, bundle), oracle(data, 4))
    assert bundle.runs == (6 + 1) * data.num_batches
    fewer = data.select(range(3))
    assert torch.equal(run_chain(tmp_path / "third", fewer, 5, kept, bundle), oracle(fewer, 5))
    assert bundle.runs == 7 * data.num_batches + 2 * fewer.num_batches


def test_a_kept_file_is_not_made_from_fewer_batches(tmp_path: Path) -> None:
    data = toy_data(7).select(range(3))
    run_chain(tmp_path, data, 5, KeptDepth(3, tmp_path / "kept", 4), ToyBundle())
    assert not (tmp_path / "kept").exists()


def test_a_pass_never_writes_what_it_has_still_to_read() -> None:
    for count in range(1, 6):
        for base in (0, 1):
            order = list(batch_order(count, base))
            for position, batch in enumerate(order):
                written = batch + base
                still_read = {later + 1 - base for later in order[position:]}
                assert written not in still_read


@pytest.mark.parametrize("kept_depth", [None, 0, 2])
def test_killed_before_any_record_the_chain_goes_on_to_the_same_bytes(
    tmp_path: Path, kept_depth: int | None, killed_before: Any
) -> None:
    """Kills once before each record is written, with the batch it tells of torn, and goes on from there."""
    data = toy_data(5)
    expected = oracle(data, LAYERS)
    deaths = 0
    for number in range(1000):
        folder = tmp_path / str(number)
        folder.mkdir()
        kept = None if kept_depth is None else KeptDepth(kept_depth, folder / "kept", data.num_batches)
        with killed_before(number) as life:
            run_chain(folder, data, LAYERS, kept, ToyBundle())
        tear_newest(folder, data, kept)
        resumed = ToyBundle()
        assert torch.equal(run_chain(folder, data, LAYERS, kept, resumed), expected), number
        assert resumed.runs <= (LAYERS + 1) * data.num_batches - max(0, life.records - 1)
        if not life.killed:
            break
        deaths += 1
    assert deaths == 1 + (LAYERS + 1) * data.num_batches


def tear_newest(folder: Path, data: TokenData, kept: KeptDepth | None) -> None:
    """Fills with garbage the slot of the batch that was computed but not journalled."""
    journal = Journal(folder / "work", {"assignment": "a"})
    with closing(Chain(ToyBundle(), toy_state(), data, journal, kept)) as chain:  # type: ignore[arg-type]
        done = dict(journal.find("pass"))
        depth = chain.depth + 1
        if depth <= LAYERS and not (kept is not None and kept.path.exists() and depth == kept.depth):
            view = chain._destination(depth)
            order = range(data.num_batches) if depth == 0 else batch_order(data.num_batches, view.base)
            view.batch(order[done.get(depth, 0)]).fill_(float("nan"))
    journal.close()


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def test_really_killed_again_and_again_the_chain_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data = toy_data(9)
    kept = KeptDepth(2, tmp_path / "kept", data.num_batches)
    generator = random.Random(3)
    kills = 0
    for _ in range(200):
        child = forked(lambda: void(run_chain(tmp_path, data, LAYERS, kept, ToyBundle(slow=0.004))))
        time.sleep(generator.uniform(0.01, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        kills += 1
    bundle = ToyBundle()
    assert torch.equal(run_chain(tmp_path, data, LAYERS, kept, bundle), oracle(data, LAYERS))
    assert bundle.runs == 0
    assert kills >= 3


def void(value: object) -> None:
    del value


def test_the_hidden_file_has_views_of_its_slots(tmp_path: Path) -> None:
    shape = HiddenShape(3, (BATCH, SEQ, WIDTH))
    file = HiddenFile(tmp_path / "h", shape)
    file.slot(3).fill_(2.0)
    with pytest.raises(IndexError):
        file.slot(4)
    file.close()
    assert HiddenFile.exists(tmp_path / "h", shape)
    assert not HiddenFile.exists(tmp_path / "h", HiddenShape(4, (BATCH, SEQ, WIDTH)))
    assert torch.equal(HiddenFile(tmp_path / "h", shape).slot(3), torch.full((BATCH, SEQ, WIDTH), 2.0))


def test_an_overwritten_depth_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "work", {})
    chain = Chain(ToyBundle(), toy_state(), toy_data(4), journal)  # type: ignore[arg-type]
    chain.advance_to(3)
    with pytest.raises(ValueError, match="overwritten"):
        chain.view(2)


def test_a_journal_cut_at_any_byte_keeps_its_whole_records(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", {"assignment": "a", "boot": "b"})
    for number in range(4):
        journal.append({"n": number, "text": "ä\n"})
    journal.close()
    data = (tmp_path / "j" / "journal").read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
    assert len(ends) == 5
    for cut in range(ends[0], len(data) + 1):
        (tmp_path / "j" / "journal").write_bytes(data[:cut])
        reopened = Journal(tmp_path / "j", {"assignment": "a", "boot": "b"})
        assert reopened.find("n") == list(range(sum(end <= cut for end in ends) - 1))
        reopened.append({"n": 99})
        reopened.close()
        again = Journal(tmp_path / "j", {"assignment": "a", "boot": "b"})
        assert again.find("n")[-1] == 99
        again.close()


def test_a_damaged_record_ends_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", {"assignment": "a"})
    for number in range(3):
        journal.append({"n": number})
    path = tmp_path / "j" / "journal"
    data = bytearray(path.read_bytes())
    data[data.index(b'"n":1') + 4] = ord("7")
    path.write_bytes(data)
    assert Journal(tmp_path / "j", {"assignment": "a"}).find("n") == [0]


def test_a_journal_of_another_boot_or_of_other_data_is_void_with_all_its_files(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", {"assignment": "a", "boot": "1"})
    journal.append({"n": 1})
    journal.path("hidden").write_bytes(b"x")
    again = Journal(tmp_path / "j", {"assignment": "a", "boot": "2"})
    assert again.find("n") == []
    assert not again.path("hidden").exists()
    again.discard()
    assert not (tmp_path / "j").exists()


def momentum_entry() -> ProgramEntry:
    weight, state = (
        TensorSpec(name="w", shape=(3,), dtype="float32"),
        TensorSpec(name="state.m", shape=(3,), dtype="float32"),
    )
    given = TensorSpec(name="x", shape=(), dtype="float32")
    loss = TensorSpec(name="loss", shape=(), dtype="float32")
    return ProgramEntry(file="p", inputs=(weight, state, given), outputs=(weight, state, loss), arena_bytes=0)


class Momentum:
    """A training program of one line; its outputs share one buffer, as a program's arena does."""

    entry = momentum_entry()

    def __init__(self) -> None:
        self.arena = {"w": torch.zeros(3), "state.m": torch.zeros(3), "loss": torch.zeros(())}

    def run(self, inputs: dict[str, torch.Tensor], clone_outputs: bool) -> dict[str, torch.Tensor]:
        momentum = 0.9 * inputs["state.m"] + inputs["w"] * inputs["x"]
        self.arena["w"].copy_(inputs["w"] - 0.1 * momentum)
        self.arena["state.m"].copy_(momentum)
        self.arena["loss"].copy_(inputs["w"].sum())
        return self.arena


def run_momentum(folder: Path, checkpoint: Callable[[str], None]) -> tuple[torch.Tensor, list[list[float]]]:
    journal = Journal(folder, {})
    steps = [[number] for number in range(7)]
    initial = {"w": torch.tensor([1.0, 2.0, 3.0])}
    feed = {row: {"x": torch.tensor(0.3 + row)} for row in range(7)}
    program: Any = Momentum()
    trained, values = run_steps(
        "s", program, initial, steps, {}, lambda rows: feed[rows[0]], ("loss",), journal, checkpoint
    )
    return trained["w"], values


def test_training_steps_killed_at_any_point_give_the_same_bytes(tmp_path: Path, killed_before: Any) -> None:
    expected = run_momentum(tmp_path / "whole", lambda message: None)
    for number in range(1, 8):
        with killed_before(number) as life:
            run_momentum(tmp_path / str(number), lambda message: None)
        assert life.killed
        slots = StateSlots(tmp_path / str(number), "s", momentum_entry())
        for tensor in slots.generation(number).values():
            tensor.fill_(float("nan"))
        found = run_momentum(tmp_path / str(number), lambda message: None)
        assert torch.equal(found[0], expected[0])
        assert found[1] == expected[1]


def test_padding_repeats_the_first_row_with_weight_zero() -> None:
    assert pad([5, 7], 4) == [5, 7, 5, 5]
    assert sample_weights(2, 4, 0.5).tolist() == [0.5, 0.5, 0.0, 0.0]
    assert toy_data(5).stored_batch(2) == [4, 4]
