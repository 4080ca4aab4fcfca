"""The four tasks on a tiny bundle and the real runtime, against plain PyTorch; and killed anywhere, the same bytes."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from chainfed.core.errors import MemoryBudgetError, NotFiniteError
from chainfed.core.examples import Example
from chainfed.core.manifest import Bundle
from chainfed.core.order import SplitMix64, batches, sample
from chainfed.core.tensors import decode, encode, sha256_hex, split_pieces
from chainfed.harness import cka
from chainfed.harness.assignment import Finding, StopWork, compute, open_journal
from chainfed.harness.bundle import DeviceBundle
from chainfed.harness.data import TokenData, tokenize
from chainfed.harness.outcome import EvaluationOutcome, ProfileOutcome, UpdateOutcome, tensors_path
from chainfed.harness.storage import DeviceStorage
from chainfed.runtime.program import set_threads
from chainfed.runtime.tokenization import Tokenizer
from chainfed.v1 import device_service_pb2 as pb

SEED = 11
WINDOW_END = pb.GLOBAL_BRANCH_STATISTICS_WINDOW_END
LAST_LAYER = pb.GLOBAL_BRANCH_STATISTICS_LAST_LAYER
State = Mapping[str, Tensor]


class Device:
    """A device with a tiny bundle, a random model state and a few examples; the network is left out."""

    def __init__(self, bundle: Bundle, folder: Path, examples: int) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        self.storage = DeviceStorage(folder / "state", None)
        generator = np.random.default_rng(3)
        start = decode(bundle.path("adapters.safetensors").read_bytes(), "adapters")
        self.arrays = {
            name: (
                np.abs(value) + 0.5 if name.endswith("rstd") else value + generator.normal(0, 0.05, value.shape)
            ).astype(np.float32)
            for name, value in sorted(start.items())
        }
        self.state = {name: torch.from_numpy(value) for name, value in self.arrays.items()}
        self.pieces: dict[str, Path] = {}
        for name, tensors in split_pieces(self.arrays).items():
            data = encode(tensors)
            self.pieces[name] = folder / sha256_hex(data)
            self.pieces[name].write_bytes(data)
        paths = {name: bundle.path(name) for name in self.manifest.files}
        self.device_bundle = DeviceBundle(self.manifest, bundle.manifest_sha256, paths)
        self.data = self.tokens(examples)
        set_threads(1)

    def tokens(self, examples: int) -> TokenData:
        words, labels = random.Random(examples), len(self.manifest.task.labels)
        text = ["cat", "dog", "bread", "soup", "engine", "pump", "the", "near", "old", "big"]
        rows = [
            Example(" ".join(words.choices(text, k=words.randint(0, 12))), words.randrange(labels))
            for _ in range(examples)
        ]
        tokenizer = Tokenizer(
            self.bundle.path("tokenizer.json"), self.manifest.tokenizer.pad_token_id, self.manifest.shapes.seq_len
        )
        return tokenize(rows, tokenizer, self.manifest.shapes.batch_size)

    def assignment(self, number: int = 0, foat_start: int = 1, **task: Any) -> pb.Assignment:
        assignment = pb.Assignment(assignment_id=f"{number:032x}", seed=SEED, foat_start=foat_start, **task)
        assignment.manifest.sha256 = self.bundle.manifest_sha256
        return assignment

    def run(self, assignment: pb.Assignment, budget: int = 0) -> tuple[Finding, dict[str, Tensor]]:
        """The finding and its tensors."""
        journal = open_journal(self.storage, assignment, self.data)
        try:
            finding = compute(
                self.storage,
                assignment,
                self.device_bundle,
                self.pieces,
                self.data,
                journal,
                budget,
                lambda message: None,
            )
            if isinstance(finding.outcome, EvaluationOutcome):
                return finding, {}
            found = decode(tensors_path(journal, finding.outcome).read_bytes(), "result")
        finally:
            journal.close()
        return finding, {name: torch.from_numpy(value) for name, value in found.items()}


@pytest.fixture(scope="module", autouse=True)
def _quick_collection() -> Iterator[None]:
    """As in a device: what the imports made is not walked at every collection."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def device(tiny_bundle: Bundle, tmp_path: Path) -> Device:
    return Device(tiny_bundle, tmp_path, examples=7)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    import transformers

    return transformers.AutoModel.from_pretrained(tiny_model, attn_implementation="eager").eval()


def adapt(h: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return h + functional.gelu(h @ down.T) @ up


def layer_output(model: Any, layer: int, h: Tensor, mask: Tensor) -> Tensor:
    additive = ((1.0 - mask) * torch.finfo(torch.float32).min)[:, None, None, :]
    result = model.encoder.layer[layer](h, additive)
    return result[0] if isinstance(result, tuple) else result


def depths(model: Any, state: State, data: TokenData) -> list[Tensor]:
    """The embedding output and the output of every layer and adapter, all examples at once."""
    with torch.no_grad():
        outputs = [model.embeddings(input_ids=data.ids)]
        for layer in range(len(model.encoder.layer)):
            h = layer_output(model, layer, outputs[-1], data.mask)
            outputs.append(adapt(h, state[f"adapters.{layer}.down"], state[f"adapters.{layer}.up"]))
    return outputs


def pooled(h: Tensor, mask: Tensor) -> Tensor:
    return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def logits(features: Tensor, head: tuple[Tensor, Tensor], state: State, layer: int) -> Tensor:
    standard = (features - state[f"statistics.{layer}.mean"]) * state[f"statistics.{layer}.rstd"]
    return standard @ head[0].T + head[1]


def adamw(settings: Any, groups: list[tuple[list[Tensor], float]]) -> Callable[[], None]:
    """Clip by the global norm, then AdamW with decay on matrices alone."""
    everything = [tensor for tensors, _ in groups for tensor in tensors]
    optimizer = torch.optim.AdamW(
        [
            {"params": [tensor], "lr": rate, "weight_decay": settings.weight_decay if tensor.dim() > 1 else 0.0}
            for tensors, rate in groups
            for tensor in tensors
        ],
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(everything, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def train_oracle(model: Any, device: Device, task: pb.TrainTask) -> tuple[dict[str, Tensor], list[float]]:
    """The update and the loss of every step, by autograd over transformers' own layers."""
    state, data, layers = device.state, device.data, device.manifest.model.num_layers
    first, end = task.first_layer, task.first_layer + task.window_size - 1
    final = end == layers - 1
    names = [f"adapters.{i}.{part}" for i in range(first, end + 1) for part in ("down", "up")]
    local = [f"heads.{end}.weight", f"heads.{end}.bias"]
    last = [] if final else [f"heads.{layers - 1}.weight", f"heads.{layers - 1}.bias"]
    new = {name: leaf(state[name]) for name in [*names, *local, *last]}
    groups = [([new[n] for n in names], task.adapter_lr), ([new[n] for n in local], task.head_lr)]
    step = adamw(device.manifest.optimizer, [*groups, ([new[n] for n in last], task.final_head_lr)])
    start = depths(model, state, data)[first]
    statistics = layers - 1 if task.global_branch_statistics == LAST_LAYER else end
    losses = []
    for rows in batches(len(data), data.batch_size, task.local_epochs, SEED):
        h, mask = start[rows], data.mask[rows]
        for i in range(first, end + 1):
            h = adapt(layer_output(model, i, h, mask), new[f"adapters.{i}.down"], new[f"adapters.{i}.up"])
        loss = functional.cross_entropy(
            logits(pooled(h, mask), (new[local[0]], new[local[1]]), state, end), data.labels[rows]
        )
        if not final:
            for i in range(end + 1, layers):
                h = adapt(h, state[f"adapters.{i}.down"], state[f"adapters.{i}.up"])
            outputs = logits(pooled(h, mask), (new[last[0]], new[last[1]]), state, statistics)
            loss = loss + task.global_loss_weight * functional.cross_entropy(outputs, data.labels[rows])
        losses.append(loss.item())
        loss.backward()
        step()
    if not final and task.final_head_lr == 0:
        new = {name: tensor for name, tensor in new.items() if name not in last}
    return {name: (tensor - state[name]).detach() for name, tensor in new.items()}, losses


def train_task(first: int, size: int, **settings: float) -> pb.TrainTask:
    given: dict[str, Any] = {
        "local_epochs": 2,
        "adapter_lr": 1e-3,
        "head_lr": 3e-3,
        "final_head_lr": 0.0,
        "global_loss_weight": 0.1,
        "global_branch_statistics": WINDOW_END,
    }
    return pb.TrainTask(first_layer=first, window_size=size, **(given | settings))


@pytest.mark.parametrize(
    "task",
    [
        train_task(0, 1),
        train_task(0, 1, final_head_lr=2e-3, global_branch_statistics=LAST_LAYER, global_loss_weight=0.7),
        train_task(0, 2),
        train_task(1, 2, final_head_lr=1e-3),
        train_task(0, 3),
    ],
    ids=["first", "final-head-too", "two-layers", "final-stage", "whole-model"],
)
def test_a_window_is_trained_as_in_pytorch(device: Device, model: Any, task: pb.TrainTask) -> None:
    finding, update = device.run(device.assignment(foat_start=task.first_layer, train=task))
    expected, losses = train_oracle(model, device, task)
    assert update.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(update[name], tensor, atol=1e-5), (name, (update[name] - tensor).abs().max())
        assert tensor.abs().max() > 1e-4
    outcome = finding.outcome
    assert isinstance(outcome, UpdateOutcome)
    assert (outcome.num_examples, outcome.num_steps) == (7, 4)
    assert outcome.loss == pytest.approx(sum(losses) / 4, abs=1e-5)
    assert 0 <= outcome.accuracy <= 1


def test_heads_are_warmed_up_as_in_pytorch(device: Device, model: Any) -> None:
    task = pb.WarmupTask(head_layers=[1, 2], local_epochs=3, head_lr=2e-3)
    finding, update = device.run(device.assignment(warmup=task))
    assert sorted(update) == [f"heads.{i}.{part}" for i in (1, 2) for part in ("bias", "weight")]
    outputs, losses = depths(model, device.state, device.data), []
    for layer in (1, 2):
        head = (leaf(device.state[f"heads.{layer}.weight"]), leaf(device.state[f"heads.{layer}.bias"]))
        step = adamw(device.manifest.optimizer, [(list(head), task.head_lr)])
        features = pooled(outputs[layer + 1], device.data.mask)
        for rows in batches(7, 4, 3, SEED):
            loss = functional.cross_entropy(logits(features[rows], head, device.state, layer), device.data.labels[rows])
            losses.append(loss.item())
            loss.backward()
            step()
        for part, after in zip(("weight", "bias"), head, strict=True):
            name = f"heads.{layer}.{part}"
            assert torch.allclose(update[name], after.detach() - device.state[name], atol=1e-5)
    assert isinstance(finding.outcome, UpdateOutcome)
    assert finding.outcome.num_steps == len(losses) == 12
    assert finding.outcome.loss == pytest.approx(sum(losses) / 12, abs=1e-5)


@pytest.mark.parametrize(("most", "count"), [(0, 7), (7, 7), (5, 5), (4, 4), (1, 1)])
def test_held_out_examples_are_counted_as_in_pytorch(device: Device, model: Any, most: int, count: int) -> None:
    device.run(device.assignment(1, evaluate=pb.EvaluateTask(max_examples=0)))
    for number, foat_start in ((2, 1), (3, 0), (4, 2)):
        assignment = device.assignment(number, foat_start, evaluate=pb.EvaluateTask(max_examples=most))
        finding, _ = device.run(assignment)
        head = (device.state["heads.2.weight"], device.state["heads.2.bias"])
        outputs = logits(pooled(depths(model, device.state, device.data)[3], device.data.mask), head, device.state, 2)
        labels = device.data.labels[:count]
        outcome = finding.outcome
        assert isinstance(outcome, EvaluationOutcome)
        assert outcome.num_examples == count
        assert outcome.num_correct == (outputs[:count].argmax(1) == labels).sum().item()
        expected = functional.cross_entropy(outputs[:count], labels, reduction="sum").item()
        assert outcome.loss_sum == pytest.approx(expected, abs=1e-4)


def hsic(x: Tensor, y: Tensor) -> float:
    """Appendix A to the letter: Gram matrices of the linear kernel and the centring matrix."""
    count = x.shape[0]
    centring = torch.eye(count, dtype=torch.float64) - 1.0 / count
    return torch.trace(x @ x.T @ centring @ (y @ y.T) @ centring).item() / (count - 1) ** 2


def slow_cka(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    return hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5


def test_profiling_is_eq_3_over_real_tokens(device: Device, model: Any) -> None:
    finding, statistics = device.run(device.assignment(foat_start=3, profile=pb.ProfileTask(max_examples=6)))
    data = device.data.select(sample(range(7), 6, SplitMix64(SEED)))
    outputs = depths(model, device.state, data)
    real = data.mask > 0
    assert not real.all()
    expected = [slow_cka(outputs[0][real], outputs[layer + 1][real]) for layer in range(3)]
    assert isinstance(finding.outcome, ProfileOutcome)
    assert finding.outcome.num_examples == 6
    assert finding.outcome.scores == pytest.approx(expected, abs=1e-5)
    for layer in range(3):
        features = pooled(outputs[layer + 1], data.mask)
        assert torch.allclose(statistics[f"statistics.{layer}.mean"], features.mean(0), atol=1e-5)
        assert torch.allclose(statistics[f"statistics.{layer}.variance"], features.var(0, correction=0), atol=1e-5)


def exact_cross_norm(left: cka.Centred, right: cka.Centred) -> float:
    """The squared norm with Python's own whole numbers, added up as docs/device.md says."""

    def tiles(of: cka.Centred) -> list[list[list[int]]]:
        return [
            [
                [round((float(value) - float(mean)) * of.scale) for value, mean in zip(token, of.mean, strict=True)]
                for token in tile
            ]
            for piece in of.tokens()
            for tile in piece.split(cka._TILE)
        ]

    total = [[0.0] * len(right.mean) for _ in left.mean]
    for a, b in zip(tiles(left), tiles(right), strict=True):
        for i, row in enumerate(total):
            for j in range(len(row)):
                row[j] += float(sum(x[i] * y[j] for x, y in zip(a, b, strict=True)))
    norm = 0.0
    for j in range(len(right.mean)):
        column = 0.0
        for row in total:
            column += row[j] * row[j]
        norm += column
    return norm


def test_cka_in_panels_is_cka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cka, "_PANEL", 3)
    monkeypatch.setattr(cka, "_TILE", 4)
    torch.manual_seed(0)
    x = torch.randn(23, 7) + 5
    y = torch.tanh(x @ torch.randn(7, 7)) + 2
    left, right = (cka.centre(lambda t=t: iter(t.split(9))) for t in (x, y))  # type: ignore[misc]
    norms = [cka.squared_cross_norm(*pair) for pair in ((left, right), (left, left), (right, right))]
    assert cka.linear_cka(*norms) == pytest.approx(slow_cka(x, y), abs=1e-6)
    assert norms == [exact_cross_norm(*pair) for pair in ((left, right), (left, left), (right, right))]
    assert cka.linear_cka(norms[1], norms[1], norms[1]) == 1.0
    assert cka.linear_cka(0.0, 0.0, 1.0) == 1.0
    assert np.isnan(cka.linear_cka(float("nan"), 1.0, 1.0))


@pytest.mark.parametrize(
    "task",
    [
        {"profile": pb.ProfileTask(max_examples=6)},
        {"warmup": pb.WarmupTask(head_layers=[1, 2], local_epochs=1, head_lr=1e-3)},
        {"train": train_task(1, 1)},
        {"evaluate": pb.EvaluateTask()},
    ],
    ids=["profile", "warmup", "train", "evaluate"],
)
def test_killed_before_any_record_a_task_ends_with_the_same_bytes(
    tiny_bundle: Bundle, tmp_path: Path, task: dict[str, Any], killed_before: Any
) -> None:
    whole = Device(tiny_bundle, fresh(tmp_path, "whole"), 7)
    expected, _ = whole.run(whole.assignment(**task))
    for number in itertools.count(1):
        device = Device(tiny_bundle, fresh(tmp_path, str(number)), 7)
        with killed_before(number) as life:
            device.run(device.assignment(**task))
        if not life.killed:
            break
        device.storage.forget_other_work(f"{0:032x}")
        resumed, _ = device.run(device.assignment(**task))
        assert asdict(resumed.outcome) == asdict(expected.outcome), number
        again, _ = device.run(device.assignment(**task))
        assert again == resumed
    assert number > 10


def fresh(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def test_other_data_void_the_work_of_an_assignment(device: Device) -> None:
    assignment = device.assignment(train=train_task(1, 1))
    before, _ = device.run(assignment)
    device.data = device.tokens(5)
    after, _ = device.run(assignment)
    assert isinstance(before.outcome, UpdateOutcome) and isinstance(after.outcome, UpdateOutcome)
    assert (before.outcome.num_examples, after.outcome.num_examples) == (7, 5)


def test_training_that_leaves_the_finite_numbers_is_given_back(device: Device) -> None:
    device.state = {}
    with pytest.raises(NotFiniteError, match="not finite"):
        device.run(device.assignment(train=train_task(1, 1, adapter_lr=float("inf"))))


def test_a_budget_below_the_plan_names_the_one_that_would_do(device: Device) -> None:
    needed = device.manifest.round_bytes(2)
    assignment = device.assignment(train=train_task(1, 2))
    with pytest.raises(MemoryBudgetError, match=f"{-(-needed // 1_000_000)} MB would do"):
        device.run(assignment, budget=needed - 1)
    device.run(assignment, budget=needed)


def test_work_stops_when_its_deadline_has_passed(device: Device) -> None:
    assignment = device.assignment(train=train_task(1, 1))
    assignment.deadline_unix_ms = 1
    with pytest.raises(StopWork):
        device.run(assignment)


def test_the_kept_hidden_states_outlive_the_round_and_older_ones_go(device: Device) -> None:
    for number, foat_start in enumerate((1, 1, 2)):
        device.run(device.assignment(number, foat_start, train=train_task(2, 1)))
        device.storage.forget_other_work("")
    assert len(list(device.storage.cache.glob("train-*"))) == 1
    device.run(device.assignment(9, 2, evaluate=pb.EvaluateTask()))
    assert len(list(device.storage.cache.iterdir())) == 2
