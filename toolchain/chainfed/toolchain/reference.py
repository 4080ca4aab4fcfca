"""The same programs in plain eager PyTorch: the oracle that the lowered ones are held against.

Nothing here is shared with :mod:`chainfed.toolchain.steps` but the settings: transformers' modules hold the
weights, ``backward()`` makes the gradients, ``torch.optim`` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chainfed.toolchain.families.base import ReferenceModule
from chainfed.toolchain.programs import ProgramSettings

Named = Mapping[str, Tensor]


class Adapter(nn.Module):
    """Eq. 1: ``h + gelu(h W_down) W_up``."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        """Take copies of both matrices, (A, D) each."""
        super().__init__()
        self.down = nn.Parameter(down.clone())
        self.up = nn.Parameter(up.clone())

    def forward(self, h: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return h + torch.matmul(nn.functional.gelu(torch.matmul(h, self.down.t())), self.up)


class Head(nn.Module):
    """A linear classifier on pooled features standardised by fixed statistics."""

    def __init__(self, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> None:
        """Take copies of the weight (C, D) and the bias (C,); mean and rstd are (D,)."""
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())
        self.mean, self.rstd = mean, rstd

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, C)."""
        return nn.functional.linear((features - self.mean) * self.rstd, self.weight, self.bias)


class Reference:
    """Eager counterparts of all programs made with the same settings, by named inputs and outputs."""

    def __init__(self, settings: ProgramSettings) -> None:
        """Remember the settings; modules are made when a program first needs them."""
        self.settings = settings
        self._layers: list[ReferenceModule] = []
        self._embeddings: ReferenceModule | None = None
        self._output = settings.family.reference_output()

    def run(self, program: str, tensors: Named) -> dict[str, Tensor]:
        """Compute the outputs of a program from its named inputs.

        Raises:
            KeyError: no program has this name, or an input is missing.
        """
        if program.startswith("window_q"):
            return self.window(int(program.removeprefix("window_q")), tensors)
        compute = {"embed": self._embed, "block": self._block, **self.of_task()}
        return compute[program](tensors)

    def of_task(self) -> dict[str, Callable[[Named], dict[str, Tensor]]]:
        """The programs of the task, by name, but for the windows."""
        return {"pool": self._pool, "head": self._head, "score": self._score}

    def _embed(self, tensors: Named) -> dict[str, Tensor]:
        if self._embeddings is None:
            self._embeddings = self.settings.family.reference_embeddings()
        self._embeddings.load(_below(tensors, "embeddings."))
        with torch.no_grad():
            return {"h": self._embeddings(tensors["input_ids"])}

    def _block(self, tensors: Named) -> dict[str, Tensor]:
        layer = self._layer(0, tensors, "layer.")
        with torch.no_grad():
            hidden = layer(tensors["h"], tensors["mask"])
            return {"h": Adapter(tensors["adapter.down"], tensors["adapter.up"])(hidden)}

    def _pool(self, tensors: Named) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"features": self._pooled(tensors["h"], tensors)}

    def _score(self, tensors: Named) -> dict[str, Tensor]:
        head = Head(tensors["head.weight"], tensors["head.bias"], tensors["mean"], tensors["rstd"])
        with torch.no_grad():
            logits = head(self._pooled(tensors["h"], tensors))
        loss, correct = _loss_and_correct(logits, tensors)
        return {"loss_sum": loss, "correct": correct, "logits": logits}

    def _head(self, tensors: Named) -> dict[str, Tensor]:
        head = Head(tensors["head.weight"], tensors["head.bias"], tensors["mean"], tensors["rstd"])
        loss, correct = _loss_and_correct(head(tensors["features"]), tensors)
        parameters = {"head.weight": head.weight, "head.bias": head.bias}
        loss.backward()  # type: ignore[no-untyped-call]
        rates = dict.fromkeys(parameters, float(tensors["head_lr"]))
        state = self._optimise(parameters, rates, tensors)
        updated = {name: parameter.detach() for name, parameter in parameters.items()}
        return {**updated, **state, "loss": loss.detach(), "correct": correct}

    def window(self, size: int, tensors: Named) -> dict[str, Tensor]:
        """One training step of a window of `size` layers."""
        local_head = self._window_head(tensors, "local")
        final_head = self._window_head(tensors, "final")
        parameters, h = self.window_output(size, tensors)
        local_loss, correct = _loss_and_correct(local_head(self._pooled(h, tensors)), tensors)
        h = self.auxiliary_branch(h, tensors)
        global_loss, _ = _loss_and_correct(final_head(self._pooled(h, tensors)), tensors)
        loss = local_loss + tensors["global_loss_weight"] * global_loss
        loss.backward()  # type: ignore[no-untyped-call]

        rates = dict.fromkeys(parameters, float(tensors["adapter_lr"]))
        for name, head, rate in (("local_head", local_head, "head_lr"), ("final_head", final_head, "final_head_lr")):
            parameters |= {f"{name}.{key}": value for key, value in head.named_parameters()}
            rates |= {f"{name}.{key}": float(tensors[rate]) for key in ("weight", "bias")}
        losses = {"loss": loss, "local_loss": local_loss, "global_loss": global_loss}
        return {**self.updated(parameters, rates, tensors), **_detached(losses), "correct": correct}

    def window_output(self, size: int, tensors: Named) -> tuple[dict[str, nn.Parameter], Tensor]:
        """The adapters of a window by the names of the program's trainables, and what comes out of the last one."""
        parameters: dict[str, nn.Parameter] = {}
        h, mask = tensors["h"], tensors["mask"]
        for i in range(size):
            module = Adapter(tensors[f"trainable.window.{i}.down"], tensors[f"trainable.window.{i}.up"])
            parameters |= {f"window.{i}.{name}": value for name, value in module.named_parameters()}
            h = module(self._layer(i, tensors, f"window.{i}.layer.")(h, mask))
        return parameters, h

    def auxiliary_branch(self, h: Tensor, tensors: Named) -> Tensor:
        """The frozen adapters after the window: (B, S, D) -> (B, S, D)."""
        if "aux.down" in tensors:
            for down, up in zip(tensors["aux.down"], tensors["aux.up"], strict=True):
                h = Adapter(down, up).requires_grad_(False)(h)
        return h

    def updated(
        self, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float], tensors: Named
    ) -> dict[str, Tensor]:
        """The optimiser's step over the parameters' gradients: new trainables and new state, as programs name them."""
        state = self._optimise(parameters, rates, tensors)
        return {**{f"trainable.{name}": parameter.detach() for name, parameter in parameters.items()}, **state}

    def finish(self, h: Tensor, tensors: Named) -> Tensor:
        """What the model does to the output of its last layer: (B, S, D) -> (B, S, D)."""
        self._output.load(_below(tensors, "output."))
        finished: Tensor = self._output(h)
        return finished

    def _window_head(self, tensors: Named, which: str) -> Head:
        names = (f"trainable.{which}_head.weight", f"trainable.{which}_head.bias", f"{which}_mean", f"{which}_rstd")
        return Head(*(tensors[name] for name in names))

    def _layer(self, index: int, tensors: Named, prefix: str) -> ReferenceModule:
        while len(self._layers) <= index:
            self._layers.append(self.settings.family.reference_layer())
        self._layers[index].load(_below(tensors, prefix))
        return self._layers[index]

    def _pooled(self, h: Tensor, tensors: Named) -> Tensor:
        """What the model makes of a layer's output before a head, pooled: (B, S, D) -> (B, D)."""
        mask = tensors["mask"]
        h = self.finish(h, tensors)
        if self.settings.pooling == "last":
            return h[torch.arange(len(h)), mask.sum(dim=1).long().clamp(min=1) - 1]
        if self.settings.pooling == "cls":
            return h[:, 0, :]
        summed = (h * mask[:, :, None]).sum(dim=1)
        return summed / torch.clamp(mask.sum(dim=1), min=1.0)[:, None]

    def _optimise(
        self, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float], tensors: Named
    ) -> dict[str, Tensor]:
        """Clip, step, and return the optimiser state under the names the programs use."""
        settings = self.settings.optimizer
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm)
        groups = [
            {
                "params": [parameter],
                "lr": rates[name],
                "weight_decay": 0.0 if name.endswith("bias") else settings.weight_decay,
            }
            for name, parameter in parameters.items()
        ]
        if settings.name == "sgd":
            torch.optim.SGD(groups, lr=0.0).step()
            return {}
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.eps)
        for name, parameter in parameters.items():
            optimizer.state[parameter] = {
                "step": tensors["state.step"].clone(),
                "exp_avg": tensors[f"state.m.{name}"].clone(),
                "exp_avg_sq": tensors[f"state.v.{name}"].clone(),
            }
        optimizer.step()
        states: dict[str, dict[str, Any]] = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
        first = {f"state.m.{name}": state["exp_avg"] for name, state in states.items()}
        second = {f"state.v.{name}": state["exp_avg_sq"] for name, state in states.items()}
        return {"state.step": next(iter(states.values()))["step"], **first, **second}


def _below(tensors: Named, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _detached(tensors: Named) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _loss_and_correct(logits: Tensor, tensors: Named) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy, and how many rows of positive weight are classified correctly."""
    real = tensors["sample_weights"] > 0
    labels, weights = tensors["labels"][real], tensors["sample_weights"][real]
    each = nn.functional.cross_entropy(logits[real], labels, reduction="none")
    return (each * weights).sum(), (logits[real].argmax(dim=1) == labels).sum().to(torch.float32)


class LanguageReference(Reference):
    """The programs of causal language modelling: whole logits, torch's own cross-entropy."""

    def of_task(self) -> dict[str, Callable[[Named], dict[str, Tensor]]]:
        """The programs of the task, by name, but for the windows."""
        return {"score": self._score_targets, "next": self._next}

    def window(self, size: int, tensors: Named) -> dict[str, Tensor]:
        """One training step of a window of `size` layers."""
        parameters, h = self.window_output(size, tensors)
        local_loss, correct = self._target_loss(h, tensors)
        global_loss, _ = self._target_loss(self.auxiliary_branch(h, tensors), tensors)
        loss = local_loss + tensors["global_loss_weight"] * global_loss
        loss.backward()  # type: ignore[no-untyped-call]
        rates = dict.fromkeys(parameters, float(tensors["adapter_lr"]))
        losses = {"loss": loss, "local_loss": local_loss, "global_loss": global_loss}
        return {**self.updated(parameters, rates, tensors), **_detached(losses), "correct": correct}

    def _score_targets(self, tensors: Named) -> dict[str, Tensor]:
        with torch.no_grad():
            loss, correct = self._target_loss(tensors["h"], tensors)
        return {"loss_sum": loss, "correct": correct}

    def _next(self, tensors: Named) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"logits": self._logits(tensors["h"], tensors["places"], tensors)}

    def _target_loss(self, h: Tensor, tensors: Named) -> tuple[Tensor, Tensor]:
        """Weighted cross-entropy, and how many targets of positive weight are the most likely token."""
        real = tensors["target_weights"] > 0
        targets, weights = tensors["targets"][real], tensors["target_weights"][real]
        logits = self._logits(h, tensors["target_places"][real], tensors)
        each = nn.functional.cross_entropy(logits, targets, reduction="none")
        return (each * weights).sum(), (logits.argmax(dim=1) == targets).sum().to(torch.float32)

    def _logits(self, h: Tensor, places: Tensor, tensors: Named) -> Tensor:
        """At some of the B * S positions: (N, V)."""
        features = self.finish(h, tensors).flatten(0, 1)[places]
        logits = nn.functional.linear(features, tensors["lm_head.weight"])
        bound = self.settings.family.logit_softcap
        return logits if bound is None else bound * torch.tanh(logits / bound)


def reference_of(settings: ProgramSettings) -> Reference:
    """The eager counterparts for a task's programs."""
    return Reference(settings) if settings.task == "classification" else LanguageReference(settings)
