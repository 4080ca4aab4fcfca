"""How the operators of a traced step are broken down before they are lowered.

torch's core set leaves or makes some operators that are slow or missing on a phone. The decompositions here
use only operators that XNNPACK or ExecuTorch's optimised kernels compute fast: no erf, tanh or pow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

aten = torch.ops.aten

_CORE: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())

_TINY = 1e-30  # keeps gelu(x) / x defined at 0; too small to change any other x

_GELU_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715 * _GELU_LINEAR


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Core ATen decompositions, with ours in place of those that do badly on phones."""
    return _CORE | {
        aten.gelu.default: approximate_gelu,
        aten.gelu_backward.default: _gelu_backward,
        aten._softmax_backward_data.default: _softmax_backward,
        aten.native_layer_norm_backward.default: _layer_norm_backward,
        aten.pow.Tensor_Scalar: _power,
        aten.mean.dim: _mean,
        aten.empty_permuted.default: _empty_permuted,
    }


def approximate_gelu(x: Tensor, *, approximate: str = "none") -> Any:
    """The approximation of gelu by tanh spelled out, with (1 + tanh(u)) / 2 as sigmoid(2u); the exact gelu stays.

    XNNPACK, as ExecuTorch 1.4 calls it, computes the exact function whichever is asked for.
    """
    return NotImplemented if approximate == "none" else x * _gelu_gate(x)


def _gelu_gate(x: Tensor) -> Tensor:
    return torch.sigmoid(x * (x * x * _GELU_CUBIC + _GELU_LINEAR))


def _gelu_backward(grad_output: Tensor, x: Tensor, *, approximate: str = "none") -> Any:
    """d gelu(x) = Phi(x) + x phi(x), where Phi(x), the normal distribution, is taken as gelu(x) / x."""
    if approximate != "none":
        gate = _gelu_gate(x)
        slope = x * x * (3.0 * _GELU_CUBIC) + _GELU_LINEAR
        return grad_output * (gate + x * gate * (1.0 - gate) * slope)
    nonzero = x + _TINY
    distribution = torch.nn.functional.gelu(nonzero) / nonzero
    density = (x * x * -0.5).exp() * (1.0 / math.sqrt(2.0 * math.pi))
    return grad_output * (distribution + x * density)


def _power(x: Tensor, exponent: float) -> Any:
    """Small whole powers as products: what norms and their gradients need."""
    if exponent not in (1, 2, 3):
        return NotImplemented
    return x if exponent == 1 else x * x if exponent == 2 else x * x * x


def _mean(x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    if dim is None or dtype not in (None, x.dtype):
        return NotImplemented
    count = math.prod(x.shape[axis] for axis in dim)
    return x.sum(dim=list(dim), keepdim=keepdim) * (1.0 / count)


def _softmax_backward(grad_output: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    del input_dtype
    return output * (grad_output - (grad_output * output).sum(dim=dim, keepdim=True))


def _layer_norm_backward(
    grad_output: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> Any:
    """Gradient for the input of a layer norm over the last dimension, whose weight and bias are frozen."""
    if len(normalized_shape) != 1 or list(output_mask) != [True, False, False]:
        core = _CORE[aten.native_layer_norm_backward.default]
        return core(grad_output, x, normalized_shape, mean, rstd, weight, bias, output_mask)
    scaled = grad_output if weight is None else grad_output * weight
    standardised = (x - mean) * rstd
    share = 1.0 / normalized_shape[0]
    shift = scaled.sum(dim=-1, keepdim=True) * share
    slope = (scaled * standardised).sum(dim=-1, keepdim=True) * share
    return (scaled - shift - standardised * slope) * rstd, None, None


def _empty_permuted(
    size: Sequence[int], physical_layout: Sequence[int], dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    del physical_layout
    return torch.zeros(size, dtype=dtype)
