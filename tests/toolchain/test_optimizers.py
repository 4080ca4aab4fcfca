"""The optimisers as pure functions against torch.optim, and at the edges where they could break."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chainfed.toolchain.optimizers import OptimizerSettings, clip_scale, optimizer_step, state_shapes

SHAPES = {"first.weight": (3, 5), "first.bias": (3,), "second.down": (2, 4)}


def _random(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def _fresh_state(settings: OptimizerSettings) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in state_shapes(settings, SHAPES).items()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5, 100.0])
def test_steps_equal_torch_optim(name: Any, max_grad_norm: float | None) -> None:
    settings = OptimizerSettings(name, weight_decay=0.1, max_grad_norm=max_grad_norm)
    rates = {name: torch.tensor(0.01 * (1 + index)) for index, name in enumerate(SHAPES)}
    parameters = _random(0)
    state = _fresh_state(settings)
    theirs = {name: nn.Parameter(tensor.clone()) for name, tensor in parameters.items()}
    groups = [
        {"params": [theirs[name]], "lr": float(rates[name]), "weight_decay": 0.0 if name.endswith("bias") else 0.1}
        for name in SHAPES
    ]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.1)
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.1, eps=settings.eps)
    for step in range(20):
        gradients = _random(step + 1, scale=10.0 ** (step % 5 - 3))
        for key, parameter in theirs.items():
            parameter.grad = gradients[key].clone()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(theirs.values(), max_grad_norm)
        optimizer.step()
        parameters, state = optimizer_step(settings, parameters, gradients, state, rates)
        for key, parameter in theirs.items():
            torch.testing.assert_close(parameters[key], parameter.detach(), rtol=1e-6, atol=1e-6)
    assert name == "sgd" or state["step"] == 20


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_zero_gradients_move_nothing_but_the_decay(name: Any) -> None:
    settings = OptimizerSettings(name, weight_decay=0.1)
    parameters = _random(0)
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    rates = dict.fromkeys(SHAPES, torch.tensor(0.5))
    updated, _ = optimizer_step(settings, parameters, zeros, _fresh_state(settings), rates)
    torch.testing.assert_close(updated["first.bias"], parameters["first.bias"])
    torch.testing.assert_close(updated["first.weight"], parameters["first.weight"] * 0.95)


def test_gradients_are_clipped_together() -> None:
    gradients = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    assert clip_scale(gradients, None) == 1.0
    assert float(clip_scale(gradients, 10.0)) == 1.0
    assert float(clip_scale(gradients, 1.0)) == pytest.approx(0.2)


def test_the_state_of_adamw() -> None:
    shapes = state_shapes(OptimizerSettings("adamw"), {"w": (2, 3), "b": (2,)})
    assert shapes == {"step": (), "m.w": (2, 3), "m.b": (2,), "v.w": (2, 3), "v.b": (2,)}
    assert state_shapes(OptimizerSettings("sgd"), {"w": (2, 3)}) == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "adam"}, "'adam' is unknown"),
        ({"beta1": 1.0}, "beta1 and beta2"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        OptimizerSettings(**change)
