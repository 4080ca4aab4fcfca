"""What the tests of the programs share: a tiny encoder without files, named inputs, and the real runtime."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig

from chainfed.toolchain.families import family_for
from chainfed.toolchain.optimizers import OptimizerSettings
from chainfed.toolchain.programs import ProgramDefinition, ProgramSettings

Named = Mapping[str, Tensor]
MakeInputs = Callable[..., dict[str, Tensor]]

_SCALARS = {"adapter_lr": 1e-2, "head_lr": 3e-2, "final_head_lr": 2e-2, "global_loss_weight": 0.3}


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., ProgramSettings]:
    """`make_settings("sgd", pooling="cls", layers=2, eps=1e-3)`: 4 rows of 8 tokens, hidden size 32, 3 labels."""

    def make(optimizer: str = "adamw", *, layers: int = 3, pooling: Any = "mean", **constants: Any) -> ProgramSettings:
        config = BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=16,
        )
        rule = OptimizerSettings(optimizer, **constants)  # type: ignore[arg-type]
        windows = tuple(range(1, layers + 1))
        return ProgramSettings(family_for(config), 4, 8, 4, 3, windows=windows, pooling=pooling, optimizer=rule)

    return make


@pytest.fixture(scope="session")
def make_inputs() -> MakeInputs:
    """`make_inputs(program, seed=0, rows=4)`: random inputs in which nothing is trivial.

    Rows after the first `rows` have no weight and are garbage. Every row has padding but the first.
    """

    def make(program: ProgramDefinition, seed: int = 0, rows: int = 4) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {spec.name: _random_input(spec.name, spec.shape, generator, rows) for spec in program.inputs}

    return make


def _random_input(name: str, shape: tuple[int, ...], generator: torch.Generator, rows: int) -> Tensor:
    if name in _SCALARS:
        return torch.tensor(_SCALARS[name])
    if name == "labels":
        return torch.where(torch.arange(shape[0]) < rows, torch.arange(shape[0]) % 3, -1)
    if name == "input_ids":
        return torch.randint(50, shape, generator=generator)
    if name == "mask":
        lengths = torch.arange(shape[1], 0, -1)[: shape[0]]
        return (torch.arange(shape[1]) < lengths[:, None]).float()
    if name == "sample_weights":
        return (torch.arange(shape[0]) < rows).float() / rows
    if name.startswith("state."):
        return torch.zeros(shape)
    noise = torch.randn(shape, generator=generator)
    if name == "h":
        garbage = (torch.arange(shape[0]) >= rows).float()[:, None, None]
        return noise * (1 + 99 * garbage)
    if name.endswith(("rstd", "LayerNorm.weight")):
        return 1 + 0.1 * noise
    return 0.2 * noise


class Lowered:
    """A program on the real ExecuTorch runtime, by named inputs and outputs."""

    def __init__(self, definition: ProgramDefinition) -> None:
        # Both take seconds to import, and most tests beside this file need neither.
        import executorch.extension.pybindings._portable_lib as runtime

        from chainfed.toolchain.lowering import LoweredProgram, lower

        self.definition = definition
        self.program: LoweredProgram = lower(definition)  # the runtime reads these bytes as long as it runs
        self._module: Any = runtime._load_for_executorch_from_buffer(self.program.data)

    def run(self, inputs: Named) -> dict[str, Tensor]:
        """Named inputs -> named outputs, which are copies."""
        outputs = self._module.run_method("forward", [inputs[spec.name] for spec in self.definition.inputs])
        return {spec.name: output.clone() for spec, output in zip(self.definition.outputs, outputs, strict=True)}


@pytest.fixture(scope="session")
def lowered() -> Callable[[ProgramDefinition], Lowered]:
    """`lowered(definition)`: the program lowered and loaded."""
    return Lowered


def largest_difference(actual: Named, expected: Named) -> float:
    """Of any output, as `relative_error` measures it; infinite when the names differ."""
    from chainfed.toolchain.verify import relative_error  # brings the runtime, as above

    if actual.keys() != expected.keys():
        return float("inf")
    return max(relative_error(actual[name], expected[name]) for name in actual)


@pytest.fixture(scope="session")
def difference() -> Callable[[Named, Named], float]:
    """`difference(actual, expected)`: the largest one over all outputs."""
    return largest_difference


@pytest.fixture
def load_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[Any, Any]]:
    """`load_merged(folder)`: tokenizer and model of a merged folder, its code imported from this test's folder.

    transformers imports the code of all models as one package, which would still be that of an earlier test.
    """
    import transformers
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # transformers adds the folder, and would for good
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]

    def load(folder: Path) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
            purpose = config.architectures[0].removeprefix("ChainFedFor")
            model = getattr(transformers, f"AutoModelFor{purpose}").from_pretrained(folder, trust_remote_code=True)
        return tokenizer, model

    return load
