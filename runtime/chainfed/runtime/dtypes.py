"""The dtypes of a bundle's tensors as torch has them."""

from __future__ import annotations

import torch

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int8": torch.int8,
    "int64": torch.int64,
}
"""By their names in the manifest."""

SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "I8": torch.int8, "I64": torch.int64}
"""By their names in safetensors headers."""
