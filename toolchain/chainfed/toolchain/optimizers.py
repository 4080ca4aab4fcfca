"""The optimisers that run inside the training programs, as pure functions.

ExecuTorch's own training module knows plain SGD only; here the rule is part of the traced step, so that no
device, in whatever language, can apply another one. Parameters, gradients and state are dictionaries by
name; all tensors are float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_NORM_GUARD = 1e-6  # as torch.nn.utils.clip_grad_norm_ does


@dataclass(frozen=True)
class OptimizerSettings:
    """Which rule a step applies, and its constants; learning rates are inputs of the step.

    Attributes:
        name: ``"sgd"`` (no momentum) or ``"adamw"``.
        beta1: AdamW, decay of the first moment.
        beta2: AdamW, decay of the second moment.
        eps: AdamW, added to the root of the second moment.
        weight_decay: decoupled decay of matrices, never of biases.
        max_grad_norm: bound on the norm of all gradients together; None for no bound.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        """Refuse settings that no step can be made from.

        Raises:
            ValueError: a value is out of range.
        """
        if self.name not in ("sgd", "adamw"):
            raise ValueError(f"optimizer {self.name!r} is unknown: use 'sgd' or 'adamw'")
        if not (0 < self.beta1 < 1 and 0 < self.beta2 < 1):
            raise ValueError("beta1 and beta2 must lie between 0 and 1")
        if self.eps <= 0 or self.weight_decay < 0:
            raise ValueError("eps must be positive and weight_decay must not be negative")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError("max_grad_norm must be positive, or None")


def decays(name: str) -> bool:
    """Whether weight decay applies to a parameter: to matrices, not to biases."""
    return not name.endswith("bias")


def state_shapes(settings: OptimizerSettings, parameters: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the optimiser state for parameters of these shapes; a fresh state is all zeros.

    AdamW keeps ``step`` (a scalar count), ``m.<name>`` and ``v.<name>``; SGD keeps nothing.
    """
    if settings.name == "sgd":
        return {}
    first = {f"m.{name}": shape for name, shape in parameters.items()}
    second = {f"v.{name}": shape for name, shape in parameters.items()}
    return {"step": (), **first, **second}


def clip_scale(gradients: Mapping[str, Tensor], max_norm: float | None) -> Tensor | float:
    """The factor, at most 1, that brings the common norm of all gradients down to ``max_norm``: () or 1."""
    if max_norm is None:
        return 1.0
    squares = [(gradient * gradient).sum() for gradient in gradients.values()]
    norm = functools.reduce(torch.add, squares).sqrt()
    return (max_norm / (norm + _NORM_GUARD)).clamp(max=1.0)


def optimizer_step(
    settings: OptimizerSettings,
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    learning_rates: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clip, then apply one step of the rule.

    Args:
        settings: the rule.
        parameters: name -> tensor.
        gradients: name -> tensor, of the same names and shapes.
        state: the tensors of :func:`state_shapes`.
        learning_rates: parameter name -> () tensor.

    Returns:
        The new parameters and the new state.
    """
    scale = clip_scale(gradients, settings.max_grad_norm)
    if settings.name == "sgd":
        moves = {name: gradient * (learning_rates[name] * scale) for name, gradient in gradients.items()}
        new_state: dict[str, Tensor] = {}
    else:
        moves, new_state = _adam_moves(settings, gradients, scale, state, learning_rates)
    updated = {}
    for name, parameter in parameters.items():
        if settings.weight_decay and decays(name):
            parameter = parameter * (1.0 - learning_rates[name] * settings.weight_decay)
        updated[name] = parameter - moves[name]
    return updated, new_state


def _adam_moves(
    settings: OptimizerSettings,
    gradients: Mapping[str, Tensor],
    scale: Tensor | float,
    state: Mapping[str, Tensor],
    learning_rates: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """How far Adam moves each parameter, lr * m_hat / (sqrt(v_hat) + eps), and the new moments.

    All that does not depend on the parameter is folded into scalars, so that a tensor is passed over as few
    times as can be.
    """
    step = state["step"] + 1.0
    # expm1 keeps 1 - beta ** step exact to the last digits in the first steps, where it is small.
    correction1 = -torch.expm1(step * math.log(settings.beta1))
    correction2 = (-torch.expm1(step * math.log(settings.beta2))).sqrt()
    ratio = correction2 / correction1
    eps = correction2 * settings.eps
    share1 = scale * (1.0 - settings.beta1)
    share2 = scale * scale * (1.0 - settings.beta2)
    moves: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        m = state[f"m.{name}"] * settings.beta1 + gradient * share1
        v = state[f"v.{name}"] * settings.beta2 + (gradient * gradient) * share2
        first[f"m.{name}"], second[f"v.{name}"] = m, v
        moves[name] = m / (v.sqrt() + eps) * (learning_rates[name] * ratio)
    return moves, {"step": step, **first, **second}
