"""A Hugging Face model folder, read lazily: configuration, tokenizer, safetensors. Nothing in it is run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import tokenizers
import torch
import transformers

from chainfed.core.errors import ModelError
from chainfed.core.manifest import CONFIG_FILE, TOKENIZER_FILE
from chainfed.core.tensors import FloatArray, Tensors
from chainfed.toolchain.families import (
    Family,
    MissingWeightError,
    UnsupportedModelError,
    family_for,
    supported_model_types,
)

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
VOCABULARY_FILE = "vocab.txt"

_HUB_PATTERNS = [CONFIG_FILE, "model*.safetensors", WEIGHTS_INDEX_FILE, "*token*.json", VOCABULARY_FILE]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_PRIVATE_SETTINGS = ("_name_or_path", "name_or_path", "transformers_version")


class Checkpoint:
    """A model folder. Weights are read tensor by tensor, when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError when it is no model, has no family, or its weights are no safetensors."""
        self.folder = folder
        self.config = _read_config(folder)
        self.family = family_of(folder, self.config)
        self._files = _weight_files(folder)

    def embeddings(self) -> Tensors:
        """The embedding tensors by the family's local names, float32.

        Raises ModelError when one is missing or misshapen.
        """
        return self._read(self._keys("embeddings"), self.family.embedding_shapes)

    def layer(self, index: int) -> Tensors:
        """The tensors of one layer by the family's local names, float32.

        Raises ModelError when one is missing or misshapen.
        """
        constants = {name: tensor.numpy() for name, tensor in self.family.layer_constants(index).items()}
        return constants | self._read(self._keys(index), self.family.layer_shapes)

    def output(self) -> Tensors:
        """What stands between the last layer and a head, by the family's local names, float32; often nothing.

        Raises ModelError when a tensor is missing or misshapen.
        """
        return self._read(self._keys("output"), self.family.output_shapes)

    def tensor(self, part: str | int, name: str) -> FloatArray:
        """One float32 tensor of "embeddings", "output" or a layer by its index, by the family's local name.

        Raises ModelError when it is missing.
        """
        keys = self._keys(part)
        if name not in keys:
            raise ModelError(f"{self.folder} has no tensor {name}; give the model that the bundle was exported from.")
        return np.ascontiguousarray(self._read_tensor(keys[name]).to(torch.float32).numpy())

    def check_weights(self) -> None:
        """Raises ModelError unless every tensor that the family needs is there; reads none of them."""
        for part in ("embeddings", *range(self.family.num_layers), "output"):
            self._keys(part)

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The fast tokenizer, from `tokenizer.json` or else built from the vocabulary.

        Raises ModelError when there is none.
        """
        path = self.folder / TOKENIZER_FILE
        try:
            if path.is_file():
                tokenizer = tokenizers.Tokenizer.from_file(str(path))
            elif (self.folder / VOCABULARY_FILE).is_file():
                slow = transformers.AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
                tokenizer = tokenizers.Tokenizer.from_str(slow.backend_tokenizer.to_str())
            else:
                raise ModelError(
                    f"{self.folder} has no tokenizer (neither {TOKENIZER_FILE} nor {VOCABULARY_FILE}); "
                    "save the model's tokenizer into the folder with tokenizer.save_pretrained."
                )
        except ModelError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"the tokenizer in {self.folder} cannot be read ({error}); save it again.") from error
        if tokenizer.get_vocab_size() > self.family.vocab_size:
            raise ModelError(
                f"the tokenizer in {self.folder} has {tokenizer.get_vocab_size()} tokens but the model "
                f"embeds only "
                f"{self.family.vocab_size}; put the model's own tokenizer there."
            )
        return tokenizer

    def pad_token_id(self, tokenizer: tokenizers.Tokenizer) -> int:
        """What fills a short row: the model's padding token, else a usual one, else id 0."""
        configured = self.config.get("pad_token_id")
        if isinstance(configured, int) and 0 <= configured < self.family.vocab_size:
            return configured
        usual = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        return next((token_id for token_id in usual if token_id is not None), 0)

    def special_tokens(self) -> dict[str, str]:
        """The special tokens in `tokenizer_config.json`, such as "mask_token": "[MASK]"; none without it."""
        path = self.folder / TOKENIZER_CONFIG_FILE
        settings = _read_json_object(path) if path.is_file() else {}
        tokens = {name: _content(value) for name, value in settings.items() if name.endswith("_token")}
        return {name: token for name, token in tokens.items() if token}

    def _keys(self, part: str | int) -> dict[str, str]:
        """Local name -> key of the embeddings, of a layer by its index, or of the output."""
        try:
            if isinstance(part, int):
                return self.family.layer_keys(part, self._files.keys())
            find = self.family.embedding_keys if part == "embeddings" else self.family.output_keys
            return find(self._files.keys())
        except MissingWeightError as error:
            raise ModelError(f"{self.folder} is incomplete: {error}; download or save the model again.") from error

    def _read(self, keys: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
        result: Tensors = {}
        for name, key in keys.items():
            tensor = self._read_tensor(key)
            if tuple(tensor.shape) != tuple(shapes[name]):
                raise ModelError(
                    f"{self._files[key]}: tensor {key} has shape {list(tensor.shape)}, but {CONFIG_FILE} "
                    f"says "
                    f"{list(shapes[name])}; the folder mixes two models."
                )
            result[name] = np.ascontiguousarray(tensor.to(torch.float32).numpy())
        return result

    def _read_tensor(self, key: str) -> torch.Tensor:
        with _open_weights(self._files[key]) as file:
            tensor: torch.Tensor = file.get_tensor(key)
            return tensor


def locate_model(model: str) -> Path:
    """The folder of a model that is given as a local folder or as a name on the Hugging Face hub.

    Only a name that is no existing path is looked up; only configuration, tokenizer and safetensors files are
    fetched. Raises ModelError when there is neither such a folder nor such a model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{model} is a file, not a model folder; give the folder that holds {CONFIG_FILE}.")
    if not _HUB_NAME.fullmatch(model):
        raise ModelError(f"{model} does not exist; give a Hugging Face model folder or a model's name on the hub.")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=_HUB_PATTERNS))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{model} is no folder here and could not be fetched from the Hugging Face hub ({reason}); "
            "check the name, or download the model and give its folder."
        ) from error


def without_private_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a configuration file without the ones that only tell where and by what it was made."""
    return {name: value for name, value in settings.items() if name not in _PRIVATE_SETTINGS}


def _content(token: Any) -> str:
    """The text of a special token, which old files keep as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ModelError(f"{folder} is no model: it has no {CONFIG_FILE}. Give a Hugging Face model folder.")
    config = _read_json_object(path)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"{path} names no `model_type`, so this is no transformers model; give a Hugging Face model folder."
        )
    return config


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); download or save the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is no JSON object; download or save the model again.")
    return value


def family_of(folder: Path, config: Mapping[str, Any]) -> Family:
    """The family of the model that a folder's `config.json` describes. Raises ModelError when there is none."""
    if config["model_type"] not in supported_model_types():
        raise ModelError(
            f"{folder} holds a model of type {config['model_type']!r}, which ChainFed cannot export; "
            f"supported are: {', '.join(supported_model_types())}."
        )
    try:
        return family_for(parse_model_config(config))
    except (UnsupportedModelError, ValueError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG_FILE} describes a model that ChainFed cannot export: {error}.") from error


def parse_model_config(config: Mapping[str, Any]) -> Any:
    """The transformers configuration object of a `config.json`.

    Raises ValueError for a type that transformers does not know.
    """
    settings = {name: value for name, value in config.items() if name != "model_type"}
    return transformers.AutoConfig.for_model(config["model_type"], **settings)


def _weight_files(folder: Path) -> dict[str, Path]:
    """Key -> file of every tensor of the checkpoint, from the files' headers."""
    index = folder / WEIGHTS_INDEX_FILE
    if index.is_file():
        mapping = _read_json_object(index).get("weight_map")
        if not isinstance(mapping, dict):
            raise ModelError(f"{index} has no `weight_map`; download or save the model again.")
        files = sorted({folder / Path(str(name)).name for name in mapping.values()})
    else:
        files = [folder / WEIGHTS_FILE]
    keys: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise _missing_weights(folder, file)
        with _open_weights(file) as opened:
            keys |= dict.fromkeys(opened.keys(), file)
    return keys


def _open_weights(file: Path) -> Any:
    try:
        return safetensors.safe_open(str(file), framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"{file} is truncated or no safetensors file ({error}); download or save the model again."
        ) from error


def _missing_weights(folder: Path, file: Path) -> ModelError:
    pickles = sorted(found.name for pattern in _PICKLES for found in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is read, "
            f"so ChainFed does not; "
            "save the model again with model.save_pretrained, which writes safetensors."
        )
    return ModelError(f"{folder} has no {file.name}; give a folder with the model's weights as safetensors.")
