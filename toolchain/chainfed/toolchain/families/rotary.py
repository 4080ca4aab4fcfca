"""Models with rotary positions and norms before each part of a layer: today's decoders, and ModernBERT.

Layers of one model may differ in how far they attend and in the frequencies of their positions. Both are tensors beside
the layer's weights, so one program serves them all.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.models.gemma2.modeling_gemma2 import (
    Gemma2DecoderLayer,
    Gemma2RMSNorm,
    Gemma2RotaryEmbedding,
)
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3DecoderLayer,
    Gemma3RMSNorm,
    Gemma3RotaryEmbedding,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRMSNorm, MistralRotaryEmbedding
from transformers.models.modernbert.modeling_modernbert import (
    ModernBertEmbeddings,
    ModernBertEncoderLayer,
    ModernBertRotaryEmbedding,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

from chainfed.toolchain.families.base import Pooling, ReferenceModule, Weights, shapes_of
from chainfed.toolchain.families.modules import ModuleFamily

_MASKED_SCORE = -1e9
_UNLIMITED = 1e9  # a distance that no sequence has
_POSITIONS = "positions."
_LENGTH_DEPENDENT = ("dynamic", "longrope")


class RotaryFamily(ModuleFamily):
    """Token embeddings, then layers called as ``layer(h, attention_mask=, position_embeddings=)``, then a final norm.

    Beside its weights a layer has ``positions.inv_freq`` (head size / 2), the angle by which a pair of channels turns
    from one position to the next; ``positions.scaling`` (), a factor of sines and cosines; and ``positions.reach`` (),
    the largest distance between positions at which it attends.
    """

    norm_type: ClassVar[type[nn.Module]]
    """transformers' final norm, made from the hidden size and ``eps``."""
    rotary_type: ClassVar[type[nn.Module]]
    """transformers' module of the frequencies, made from the configuration."""
    causal: ClassVar[bool] = True
    roots = ("model.", "")
    embeddings_prefix = "embed_tokens."
    layers_path = "layers"
    output_prefix = "norm."
    default_pooling: ClassVar[Pooling] = "last"  # the only token that has seen the whole text

    def __init__(self, config: Any) -> None:
        """Read the dimensions from a transformers configuration.

        Raises:
            ValueError: its positions depend on the length of the text, which a program cannot follow.
        """
        super().__init__(config)
        self._rotary: Any = self.rotary_type(self.config)
        kinds: Any = self._rotary.rope_type
        used = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        if unusable := sorted(used.intersection(_LENGTH_DEPENDENT)):
            raise ValueError(f"rotary positions of type {unusable[0]!r} depend on the length of the text")

    def make_embeddings(self) -> nn.Module:
        """The embedding module, called as ``module(input_ids)``."""
        return nn.Embedding(self.vocab_size, self.hidden_size)

    def make_layer(self) -> nn.Module:
        """The layer module; which index it is made with makes no difference to what it computes."""
        return self.layer_type(self.config, 0)

    def make_output(self) -> nn.Module:
        """The final norm."""
        return self.norm_type(self.hidden_size, eps=self.config.rms_norm_eps)

    def layer(self, weights: Weights, h: Tensor, mask: Tensor) -> Tensor:
        """Self-attention and feed-forward of one layer: (B, S, D) -> (B, S, D)."""
        own = {name: tensor for name, tensor in weights.items() if not name.startswith(_POSITIONS)}
        places = torch.arange(h.shape[1]).to(h.dtype)
        angles = places[:, None] * weights["positions.inv_freq"]
        angles = torch.cat((angles, angles), dim=1)[None]
        arguments = {
            "attention_mask": self._masked_scores(places, weights["positions.reach"], mask),
            "position_embeddings": (
                angles.cos() * weights["positions.scaling"],
                angles.sin() * weights["positions.scaling"],
            ),
        }
        hidden: Tensor = functional_call(self._layer, own, (h,), arguments)
        return hidden

    def reference_layer(self) -> ReferenceModule:
        """The layer module, with sines, cosines and mask worked out step by step."""
        return _RotaryReference(self.make_layer(), self.causal)

    def layer_constants(self, index: int) -> Weights:
        """How far layer ``index`` attends, and its frequencies."""
        kinds = getattr(self.config, "layer_types", None)
        window = getattr(self.config, "sliding_window", None)
        if kinds is not None and kinds[index] != "sliding_attention":
            window = None
        own = f"{kinds[index]}_" if kinds is not None and isinstance(self._rotary.rope_type, dict) else ""
        reach = _UNLIMITED if window is None else window - 1 if self.causal else window
        return {
            "positions.inv_freq": getattr(self._rotary, f"{own}inv_freq").detach().clone(),
            "positions.scaling": torch.tensor(float(getattr(self._rotary, f"{own}attention_scaling"))),
            "positions.reach": torch.tensor(float(reach)),
        }

    def _masked_scores(self, places: Tensor, reach: Tensor, mask: Tensor) -> Tensor:
        """What is added to attention's scores: 0, or a large negative number where a position must not look.

        Places and reach are whole numbers, so how far a distance is beyond the reach is 0 or at least 1. (B, 1, S, S)
        """
        ahead = places[None, :] - places[:, None]
        behind = -ahead
        beyond = torch.relu(behind - reach) + torch.relu(ahead if self.causal else ahead - reach)
        return (beyond.clamp(max=1.0)[None, None] + (1.0 - mask)[:, None, None, :]) * _MASKED_SCORE


class _RotaryReference(ReferenceModule):
    def __init__(self, module: nn.Module, causal: bool) -> None:
        super().__init__(module)
        self.causal = causal
        self.positions: dict[str, Tensor] = {}

    def load(self, tensors: Weights) -> None:
        self.positions = {name: tensor for name, tensor in tensors.items() if name.startswith(_POSITIONS)}
        super().load({name: tensor for name, tensor in tensors.items() if name not in self.positions})

    def forward(self, *arguments: Tensor) -> Tensor:
        h, mask = arguments
        rows = torch.arange(h.shape[1])[:, None]
        columns = torch.arange(h.shape[1])[None, :]
        seen = (rows - columns).abs() <= self.positions["positions.reach"]
        if self.causal:
            seen &= columns <= rows
        seen = seen[None] & (mask[:, None, :] > 0)
        scores = torch.where(seen, 0.0, torch.finfo(h.dtype).min)[:, None]
        angles = torch.outer(rows[:, 0].to(h.dtype), self.positions["positions.inv_freq"]).repeat(1, 2)[None]
        scaling = self.positions["positions.scaling"]
        embedded = (torch.cos(angles) * scaling, torch.sin(angles) * scaling)
        result: Tensor = self.module(h, attention_mask=scores, position_embeddings=embedded)
        return result


class LlamaFamily(RotaryFamily):
    """LLaMA 2 and 3, TinyLlama, SmolLM2."""

    layer_type = LlamaDecoderLayer
    norm_type = LlamaRMSNorm
    rotary_type = LlamaRotaryEmbedding


class MistralFamily(RotaryFamily):
    """Mistral: every layer attends within a sliding window, where the configuration has one."""

    layer_type = MistralDecoderLayer
    norm_type = MistralRMSNorm
    rotary_type = MistralRotaryEmbedding


class Qwen2Family(RotaryFamily):
    """Qwen 2 and 2.5."""

    layer_type = Qwen2DecoderLayer
    norm_type = Qwen2RMSNorm
    rotary_type = Qwen2RotaryEmbedding


class Qwen3Family(RotaryFamily):
    """Qwen 3: queries and keys are normalised."""

    layer_type = Qwen3DecoderLayer
    norm_type = Qwen3RMSNorm
    rotary_type = Qwen3RotaryEmbedding


class ScaledEmbeddings(nn.Embedding):
    """Gemma's token embeddings, multiplied by the root of their width."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, D)."""
        hidden: Tensor = super().forward(input_ids) * float(self.embedding_dim) ** 0.5
        return hidden


class Gemma2Family(RotaryFamily):
    """Gemma 2: norms around each part, scores bounded by a tanh."""

    layer_type = Gemma2DecoderLayer
    norm_type = Gemma2RMSNorm
    rotary_type = Gemma2RotaryEmbedding

    def make_embeddings(self) -> nn.Module:
        """Scaled token embeddings."""
        return ScaledEmbeddings(self.vocab_size, self.hidden_size)


class Gemma3Family(Gemma2Family):
    """Gemma 3, text only: five local layers to a global one, each kind with frequencies of its own."""

    layer_type = Gemma3DecoderLayer
    norm_type = Gemma3RMSNorm
    rotary_type = Gemma3RotaryEmbedding


class GatedNorm(nn.Module):
    """A norm that a gate of 0 turns into the identity: for layers that differ only in having it or not."""

    def __init__(self, norm: nn.Module) -> None:
        """Start with the norm in force."""
        super().__init__()
        self.gate = nn.Parameter(torch.ones(()))
        self.norm = norm

    def forward(self, h: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        normed: Tensor = self.norm(h)
        return h + self.gate * (normed - h)


class ModernBertFamily(RotaryFamily):
    """ModernBERT: two local layers to a global one; the first layer has no norm before its attention."""

    layer_type = ModernBertEncoderLayer
    rotary_type = ModernBertRotaryEmbedding
    embeddings_prefix = "embeddings."
    output_prefix = "final_norm."
    causal = False
    default_pooling = "mean"

    def make_embeddings(self) -> nn.Module:
        """Token embeddings, normalised."""
        module: nn.Module = ModernBertEmbeddings(self.config)
        return module

    def make_layer(self) -> nn.Module:
        """A later layer, with a gate on the norm that the first one lacks.

        Raises:
            ValueError: there is no later layer.
        """
        if self.num_layers < 2:
            raise ValueError("a ModernBERT model of one layer has no layer like the others")
        layer: nn.Module = self.layer_type(self.config, 1)
        layer.attn_norm = GatedNorm(layer.get_submodule("attn_norm"))
        return layer

    def make_output(self) -> nn.Module:
        """The final norm."""
        return nn.LayerNorm(self.hidden_size, eps=self.config.norm_eps, bias=self.config.norm_bias)

    def stored_name(self, name: str) -> str:
        """The gate's norm is stored without it."""
        return name.replace("attn_norm.norm.", "attn_norm.")

    def layer_constants(self, index: int) -> Weights:
        """The gate too, and for the first layer a norm that the gate shuts out."""
        constants = {**super().layer_constants(index), "attn_norm.gate": torch.tensor(float(index > 0))}
        if index == 0:
            shapes = shapes_of(self._layer)
            constants |= {
                name: torch.ones(shape) for name, shape in shapes.items() if name.startswith("attn_norm.norm.")
            }
        return constants
