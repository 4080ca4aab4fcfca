"""What programs are fed of the model state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chainfed.core.errors import BundleError
from chainfed.core.tensors import NO_LABEL, head_rows
from chainfed.runtime.feeds import program_tensor, take

MANIFEST: Any = SimpleNamespace(num_labels=3)


def test_heads_have_a_power_of_two_of_rows() -> None:
    assert [head_rows(count) for count in (2, 4, 8, 9, 16, 17, 77, 150)] == [8, 8, 8, 16, 16, 32, 128, 256]


def test_a_head_gets_rows_that_never_win() -> None:
    state = {"heads.1.weight": torch.randn(3, 4), "heads.1.bias": torch.randn(3), "adapters.1.up": torch.randn(2, 4)}
    weight, bias, up = (program_tensor(MANIFEST, state, name) for name in state)
    assert torch.equal(weight, torch.cat([state["heads.1.weight"], torch.zeros(5, 4)]))
    assert torch.equal(bias, torch.cat([state["heads.1.bias"], torch.full((5,), NO_LABEL)]))
    assert up is state["adapters.1.up"]
    shares = torch.softmax(torch.randn(7, 4) @ weight.T + bias, dim=1)
    assert not shares[:, 3:].any()


def test_a_state_of_another_model_or_label_set_is_refused() -> None:
    with pytest.raises(BundleError, match=r"lacks heads\.1\.bias"):
        take({}, "heads.1.bias")
    with pytest.raises(BundleError, match=r"heads\.1\.bias is for 4 labels, the bundle has 3"):
        program_tensor(MANIFEST, {"heads.1.bias": torch.zeros(4)}, "heads.1.bias")
