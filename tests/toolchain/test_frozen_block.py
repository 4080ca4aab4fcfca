"""Block programs that hold their layer's quantised weights: against eager on the same weights widened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import executorch.extension.pybindings._portable_lib as runtime
import numpy as np
import pytest
import torch

from chainfed.toolchain.frozen_block import lower_frozen_block
from chainfed.toolchain.programs import ProgramSettings
from chainfed.toolchain.quantization import StoredArray, matrices, narrow
from chainfed.toolchain.reference import Reference, wide_tensors
from chainfed.toolchain.steps import block_programs
from chainfed.toolchain.verify import ROUNDING_TOLERANCE, norm_error


def stored_layer(settings: ProgramSettings, seed: int) -> dict[str, StoredArray]:
    generator = np.random.default_rng(seed)
    shapes = settings.family.layer_shapes
    tensors = {name: generator.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    return narrow(tensors, matrices(shapes), settings.dtype)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_block_gives_what_its_own_layer_gives(dtype, make_settings: Callable[..., ProgramSettings]) -> None:
    settings = replace(make_settings("sgd"), dtype=dtype)
    weights, others = stored_layer(settings, 1), stored_layer(settings, 2)
    lowered = lower_frozen_block(settings, 1, weights)
    definition = block_programs(settings)[1]
    assert lowered.name == definition.name == "block_01"
    assert [spec.name for spec in definition.inputs] == ["h", "mask", "adapter.down", "adapter.up"]

    generator = torch.Generator().manual_seed(0)
    inputs = {spec.name: torch.randn(spec.shape, generator=generator) * 0.5 for spec in definition.inputs}
    inputs["mask"] = (torch.arange(8) < torch.tensor([[8], [5], [3], [1]])).float()
    module = runtime._load_for_executorch_from_buffer(lowered.data)
    (actual,) = module.run_method("forward", [inputs[spec.name] for spec in definition.inputs])

    def expected(stored: dict[str, StoredArray]) -> torch.Tensor:
        held = {f"layer.{name}": torch.from_numpy(array) for name, array in stored.items()}
        return Reference(settings).run("block", wide_tensors(inputs | held))["h"]

    assert 0 < norm_error(actual, expected(weights)) < ROUNDING_TOLERANCE
    assert norm_error(actual, expected(others)) > 10 * ROUNDING_TOLERANCE


def test_a_block_holds_each_matrix_once_and_in_a_byte_a_weight(make_settings: Callable[..., ProgramSettings]) -> None:
    settings = replace(make_settings("sgd"), dtype="int8")
    weights = stored_layer(settings, 1)
    codes = sum(array.nbytes for array in weights.values() if array.dtype == np.int8)
    data = lower_frozen_block(settings, 0, weights).data
    for name, array in weights.items():
        if array.dtype == np.int8:
            assert data.count(array.tobytes()) == 1, name
    assert len(data) < codes + 40_000
