"""The tuned model as a module in memory: what is turned into other forms, and what those are held against."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from chainfed.core.manifest import CONFIG_FILE
from chainfed.toolchain.merged_model import modeling_chainfed

INPUT_NAMES = ("input_ids", "attention_mask")
"""What every form takes: token ids (B, S), and 1 for a token or 0 for padding (B, S); both int64."""

OUTPUT_NAME = "logits"
"""What every form gives, float32."""


class LogitsModel(nn.Module):
    """A merged model as a function of two tensors that gives one."""

    def __init__(self, model: nn.Module) -> None:
        """Keeps the model, in evaluation mode."""
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S) int64 each -> the model's logits."""
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def load_tuned_model(folder: Path) -> LogitsModel:
    """The model in a folder that `merge_bundle` wrote, in float32, with attention written out step by step."""
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    name = config["architectures"][0]
    model_class: Any = getattr(modeling_chainfed, name, None) or getattr(transformers, name)
    with without_loading_bar():
        model = model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    model.base_model.config.use_cache = False  # a decoder would hand back keys and values beside the logits
    return LogitsModel(model)


@contextlib.contextmanager
def without_loading_bar() -> Iterator[None]:
    """Keeps transformers' progress bar from standing beside ours."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_exporter(*loggers: str) -> Iterator[None]:
    """Silences what an exporter says about its own insides: warnings, and all but errors of the given loggers."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
