"""The programs' attention against the functions that transformers' eager models call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma_attention
from transformers.models.llama.modeling_llama import eager_attention_forward as grouped_attention
from transformers.models.roberta.modeling_roberta import eager_attention_forward as plain_attention

from chainfed.toolchain.attention import attention
from chainfed.toolchain.decompositions import decomposition_table
from chainfed.toolchain.rewrites import rewrite

BATCH, HEADS, SEQ, WIDTH = 3, 4, 6, 8


def _case(groups: int, everywhere: bool) -> tuple[list[Tensor], Tensor, Any]:
    """Query, key and value; a mask for padding, or one that is causal too; and a module of so many groups of keys."""
    torch.manual_seed(groups)
    heads = (HEADS, groups, groups)
    tensors = [torch.randn(BATCH, SEQ, count, WIDTH).transpose(1, 2) for count in heads]
    mask = (torch.arange(SEQ) >= torch.tensor([6, 4, 1])[:, None]).float()[:, None, None, :] * -1e9
    if not everywhere:
        mask = mask + torch.triu(torch.full((SEQ, SEQ), -1e9), 1)
    module = SimpleNamespace(num_key_value_groups=HEADS // groups, training=False, head_dim=WIDTH)
    return tensors, mask, module


@pytest.mark.parametrize(
    ("eager", "groups", "everywhere", "arguments"),
    [
        pytest.param(plain_attention, 4, True, {}, id="encoder"),
        pytest.param(grouped_attention, 2, False, {"scaling": 0.3}, id="grouped, causal"),
        pytest.param(grouped_attention, 1, False, {"scaling": 0.3}, id="one key for all heads"),
        pytest.param(gemma_attention, 2, False, {"scaling": 0.3, "softcap": 0.5}, id="bounded scores"),
    ],
)
def test_values_and_gradients_are_those_of_transformers(
    eager: Any, groups: int, everywhere: bool, arguments: dict[str, float]
) -> None:
    tensors, mask, module = _case(groups, everywhere)
    direction = torch.randn(BATCH, SEQ, HEADS, WIDTH)

    def loss(function: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        mixed, _ = function(module, *inputs, mask, dropout=0.0, **arguments)
        return (mixed * direction).sum(), mixed

    ours = torch.func.grad(lambda *inputs: loss(attention, *inputs), argnums=(0, 1, 2), has_aux=True)(*tensors)
    theirs = torch.func.grad(lambda *inputs: loss(eager, *inputs), argnums=(0, 1, 2), has_aux=True)(*tensors)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_without_a_mask() -> None:
    tensors, _, module = _case(2, True)
    expected, _ = grouped_attention(module, *tensors, None, scaling=WIDTH**-0.5)
    torch.testing.assert_close(attention(module, *tensors, None)[0], expected, atol=1e-6, rtol=1e-5)


def test_the_backward_pass_computes_the_probabilities_again() -> None:
    """And merging equal expressions leaves it so; keys of a group are never repeated."""
    tensors, mask, module = _case(2, False)

    def gradients(*inputs: Tensor) -> Any:
        return torch.func.grad(lambda *args: attention(module, *args, mask)[0].sum(), argnums=(0, 1, 2))(*inputs)

    graph = rewrite(make_fx(gradients, decomposition_table=decomposition_table())(*tensors)).graph
    calls = [node.target for node in graph.nodes]
    assert calls.count(torch.ops.aten._softmax.default) == 2
    scores = [node for node in graph.nodes if node.target is torch.ops.aten.bmm.default]
    assert {tuple(node.meta["val"].shape) for node in scores} <= {
        *((BATCH * 2, 2 * SEQ, SEQ), (BATCH * 2, SEQ, 2 * SEQ)),
        *((BATCH * 2, 2 * SEQ, WIDTH), (BATCH * 2, SEQ, WIDTH), (BATCH * 2, WIDTH, SEQ), (BATCH * 2, WIDTH, 2 * SEQ)),
    }
