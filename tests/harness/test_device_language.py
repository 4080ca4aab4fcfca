"""A language model's tasks on a tiny bundle and the real runtime, against transformers' own model in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from chainfed.core.manifest import Bundle
from chainfed.core.order import batches
from chainfed.core.tensors import decode
from chainfed.harness.assignment import open_journal
from chainfed.harness.bundle import DeviceBundle
from chainfed.harness.data import TokenData, read_tokens
from chainfed.harness.outcome import EvaluationOutcome, ProfileOutcome, UpdateOutcome, tensors_path
from chainfed.harness.profile import profile
from chainfed.harness.storage import DeviceStorage
from chainfed.harness.tasks import Work, evaluate, train
from chainfed.runtime.language_data import NO_TARGET, choose_targets
from chainfed.v1 import device_service_pb2 as pb

SEED = 5
TASK = {"local_epochs": 2, "adapter_lr": 1e-3, "global_loss_weight": 0.3}


@pytest.fixture(scope="module")
def model(tiny_language_model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_language_model, attn_implementation="eager").eval()


@pytest.fixture
def make_work(tiny_language_bundle: Bundle, tiny_passages: Any, tmp_path: Path) -> Any:
    """`make_work()`: 7 examples and adapters in which nothing is zero; a second one goes on where the first ended."""
    bundle = tiny_language_bundle
    files = {name: bundle.path(name) for name in bundle.manifest.files}
    device = DeviceBundle(bundle.manifest, bundle.manifest_sha256, files)
    data = read_tokens(device, tiny_passages.train).select(range(7))
    generator = np.random.default_rng(3)
    start = decode(bundle.path("adapters.safetensors").read_bytes(), "adapters")
    state = {
        name: torch.from_numpy((value + generator.normal(0, 0.05, value.shape)).astype(np.float32))
        for name, value in sorted(start.items())
    }
    assignment = pb.Assignment(assignment_id="0" * 32, seed=SEED)
    assignment.manifest.sha256 = bundle.manifest_sha256

    def make(checkpoint: Any = lambda message: None) -> Work:
        storage = DeviceStorage(tmp_path / "state", None)
        with storage:
            journal = open_journal(storage, assignment, data)
        return Work(device, state, data, journal, SEED, None, checkpoint)

    return make


def adapt(h: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return h + functional.gelu(h @ down.T) @ up


def run_layers(model: Any, first: int, last: int, h: Tensor, mask: Tensor, adapters: dict[str, Tensor]) -> Tensor:
    """transformers' own layers with an adapter after each."""
    places = torch.arange(h.shape[1])
    positions = model.model.rotary_emb(h, places[None])
    seen = (places[None, :] <= places[:, None])[None] & (mask[:, None, :] > 0)
    scores = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
    for layer in range(first, last + 1):
        h = model.model.layers[layer](h, attention_mask=scores, position_embeddings=positions)
        h = adapt(h, adapters[f"adapters.{layer}.down"], adapters[f"adapters.{layer}.up"])
    return h


def target_loss(model: Any, h: Tensor, places: Tensor, targets: Tensor) -> Tensor:
    logits = model.lm_head(model.model.norm(h)).flatten(0, 1)
    return functional.cross_entropy(logits[places], targets)


def oracle(model: Any, work: Work, task: pb.TrainTask) -> tuple[dict[str, Tensor], list[float]]:
    """The update and the loss of every step, by autograd over the whole model."""
    manifest, data = work.bundle.manifest, work.data
    first, end, last = task.first_layer, task.first_layer + task.window_size - 1, manifest.model.num_layers - 1
    adapters = dict(work.state)
    names = [f"adapters.{layer}.{part}" for layer in range(first, end + 1) for part in ("down", "up")]
    adapters |= {name: adapters[name].clone().requires_grad_() for name in names}
    rule = manifest.optimizer
    trained = [adapters[name] for name in names]
    optimizer = torch.optim.AdamW(
        trained, task.adapter_lr, (rule.beta1, rule.beta2), rule.eps, weight_decay=rule.weight_decay
    )
    losses = []
    for rows in batches(len(data), data.batch_size, task.local_epochs, SEED):
        mask = data.mask[rows]
        places, targets = choose_targets(data.labels[rows], manifest.task.max_target_tokens)
        h = run_layers(model, 0, end, model.model.embed_tokens(data.ids[rows]), mask, adapters)
        loss = target_loss(model, h, places, targets)
        if end < last:
            for layer in range(end + 1, last + 1):
                h = adapt(h, adapters[f"adapters.{layer}.down"], adapters[f"adapters.{layer}.up"])
            loss = loss + task.global_loss_weight * target_loss(model, h, places, targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, rule.max_grad_norm)
        optimizer.step()
    return {name: (adapters[name] - work.state[name]).detach() for name in names}, losses


@pytest.mark.parametrize(("first", "size"), [(0, 1), (0, 2), (1, 2)], ids=["first", "two layers", "final stage"])
def test_a_window_is_trained_as_in_pytorch(make_work: Any, model: Any, first: int, size: int) -> None:
    task = pb.TrainTask(first_layer=first, window_size=size, **TASK)
    work = make_work()
    outcome = train(work, task)
    update = decode(tensors_path(work.journal, outcome).read_bytes(), "update")
    expected, losses = oracle(model, work, task)
    assert update.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(torch.from_numpy(update[name]), tensor, atol=1e-5), name
        assert tensor.abs().max() > 1e-4
    assert isinstance(outcome, UpdateOutcome)
    assert (outcome.num_examples, outcome.num_steps) == (7, 4)
    assert outcome.loss == pytest.approx(sum(losses) / 4, abs=1e-4)
    assert 0 <= outcome.accuracy <= 1


def test_every_target_of_held_out_rows_is_counted(make_work: Any, model: Any) -> None:
    work = make_work()
    outcome = evaluate(work)
    data: TokenData = work.data
    with torch.no_grad():
        h = run_layers(model, 0, 2, model.model.embed_tokens(data.ids), data.mask, dict(work.state))
        logits = model.lm_head(model.model.norm(h))
    wanted = data.labels != NO_TARGET
    assert isinstance(outcome, EvaluationOutcome)
    assert outcome.num_examples == int(wanted.sum())
    assert outcome.num_correct == int((logits[wanted].argmax(dim=1) == data.labels[wanted]).sum())
    expected = functional.cross_entropy(logits[wanted], data.labels[wanted], reduction="sum").item()
    assert outcome.loss_sum == pytest.approx(expected, rel=1e-5)


def test_a_profile_has_scores_and_no_statistics(make_work: Any) -> None:
    work = make_work()
    outcome = profile(work, pb.ProfileTask(max_examples=6))
    assert isinstance(outcome, ProfileOutcome)
    assert len(outcome.scores) == 3
    assert all(0 < score <= 1 for score in outcome.scores)
    assert decode(tensors_path(work.journal, outcome).read_bytes(), "statistics") == {}


def test_stopped_at_any_point_the_update_has_the_same_bytes(make_work: Any) -> None:
    task = pb.TrainTask(first_layer=1, window_size=2, **TASK)
    calls = 0

    class StopError(Exception):
        pass

    def stopping(message: str) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise StopError

    stops = 0
    while True:
        work = make_work(stopping)
        try:
            outcome = train(work, task)
            break
        except StopError:
            stops += 1
            work.journal.close()
    assert stops > 2
    interrupted = outcome.tensors_sha256
    work.journal.close()
    for path in work.journal.folder.iterdir():
        path.unlink()
    assert train(make_work(), task).tensors_sha256 == interrupted
