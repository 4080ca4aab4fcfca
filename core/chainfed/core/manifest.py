"""`manifest.json` of a bundle: what the bundle holds and how to run it. `docs/bundle.md` is the specification in
prose."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chainfed.core.errors import BundleError
from chainfed.core.tensors import sha256_file, sha256_hex, state_shapes

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
ADAPTERS_FILE = "adapters.safetensors"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "config.json"
EMBEDDINGS_FILE = "weights/embeddings.safetensors"
OUTPUT_FILE = "weights/output.safetensors"
BLOCK_PROGRAM = "block"


def layer_file(layer: int) -> str:
    """Path in the bundle of one layer's weights."""
    return f"weights/layer_{layer:02d}.safetensors"


def frozen_block_program(layer: int) -> str:
    """Name of the block program that holds one layer's weights."""
    return f"block_{layer:02d}"


def window_program(window_size: int) -> str:
    """Name of the training program of a window size (Q)."""
    return f"window_q{window_size}"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
TensorDtype = Literal["float32", "float16", "int8", "int64"]
WeightDtype = Literal["f32", "f16", "int8", "int4"]
"""How the frozen matrices are stored; `docs/bundle.md` has the formulas."""

_ITEM_BYTES: dict[TensorDtype, int] = {"float32": 4, "float16": 2, "int8": 1, "int64": 8}


class FileEntry(_Part):
    """A file of the bundle: length in bytes and SHA-256."""

    bytes: NonNegative
    sha256: Sha256


class TensorSpec(_Part):
    """An input or output of a program."""

    name: str
    shape: tuple[NonNegative, ...]
    dtype: TensorDtype

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


class ProgramEntry(_Part):
    """A program, its tensors in the order in which it takes and gives them, and the bytes that its planned arena
    needs."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arena_bytes: NonNegative


class MemoryPlan(_Part):
    """Memory of a device while it runs one program over its batches, in bytes.

    `anonymous_bytes` is the sum of the four parts after it: the arena that ExecuTorch plans, what XNNPACK allocates
    at run time (measured
    at export in a process of its own), optimiser state, and input and output tensors. `file_bytes` are mapped
    weights: the system
    can evict them at any time.
    """

    anonymous_bytes: NonNegative
    arena_bytes: NonNegative
    workspace_bytes: NonNegative
    optimizer_bytes: NonNegative
    io_bytes: NonNegative
    file_bytes: NonNegative


class ModelFacts(_Part):
    """The frozen model."""

    family: str
    num_layers: Positive
    hidden_size: Positive
    vocab_size: Positive
    num_parameters: Positive
    embedding_tensors: tuple[str, ...]
    layer_tensors: tuple[str, ...]
    output_tensors: tuple[str, ...] = ()
    dtype: WeightDtype = "f32"


class Task(_Part):
    """What is learnt. `labels[k]` names label k."""

    kind: Literal["classification"]
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    pooling: Literal["mean", "cls", "last"]


class Tokenizer(_Part):
    """How text becomes token ids: `tokenizer.json` (Hugging Face tokenizers), cut and padded to the program's
    sequence length."""

    pad_token_id: NonNegative


class Shapes(_Part):
    """Static shapes of every program."""

    batch_size: Positive
    seq_len: Positive


class Adapter(_Part):
    """Bottleneck adapters (Eq. 1)."""

    bottleneck: Positive


class Optimizer(_Part):
    """The optimiser inside the training programs. `beta1`, `beta2`, `eps` and `weight_decay` are unused by sgd."""

    name: Literal["sgd", "adamw"]
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: Annotated[float, Field(gt=0)]


class TrainingDefaults(_Part):
    """What a run uses where its configuration says nothing."""

    adapter_lr: Annotated[float, Field(gt=0)]
    head_lr: Annotated[float, Field(gt=0)]
    final_head_lr: Annotated[float, Field(ge=0)]
    global_loss_weight: Annotated[float, Field(ge=0)]
    global_branch_statistics: Literal["window_end", "last_layer"]
    foat_threshold: Annotated[float, Field(ge=0, le=1)]
    foat_examples: Annotated[int, Field(ge=2)]
    warmup_rounds: NonNegative
    local_epochs: Positive


class Manifest(_Part):
    """The whole manifest. `programs` are keyed "embed", "block" (or "block_00", "block_01" ...), "pool", "head",
    "score", "window_q1" ...; `windows` by Q."""

    format: Literal["chainfed-bundle"]
    format_version: int
    created_by: dict[str, str]
    model: ModelFacts
    task: Task
    tokenizer: Tokenizer
    shapes: Shapes
    adapter: Adapter
    optimizer: Optimizer
    defaults: TrainingDefaults
    programs: dict[str, ProgramEntry]
    windows: dict[int, MemoryPlan]
    prefix: MemoryPlan
    files: dict[str, FileEntry]

    @property
    def num_labels(self) -> int:
        """Labels of the task."""
        return len(self.task.labels)

    @property
    def blocks_hold_weights(self) -> bool:
        """Whether every layer has a block program of its own, which holds its weights."""
        return frozen_block_program(0) in self.programs

    def block_program(self, layer: int) -> str:
        """Name of the program that passes hidden states through a layer and its adapter."""
        return frozen_block_program(layer) if self.blocks_hold_weights else BLOCK_PROGRAM

    def block_programs(self, num_layers: int | None = None) -> list[str]:
        """The programs that pass hidden states through the first `num_layers` layers (None: all); one may do for
        all."""
        count = self.model.num_layers if num_layers is None else num_layers
        return [self.block_program(layer) for layer in range(count)] if self.blocks_hold_weights else [BLOCK_PROGRAM]

    def weight_files(self, layers: Iterable[int] | None = None) -> list[str]:
        """The shards of frozen weights of the embeddings, of `layers` (None: all), and of what a head needs."""
        chosen = range(self.model.num_layers) if layers is None else layers
        output = [OUTPUT_FILE] if self.model.output_tensors else []
        return [EMBEDDINGS_FILE, *(layer_file(layer) for layer in chosen), *output]

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the model state."""
        return state_shapes(self.model.num_layers, self.model.hidden_size, self.adapter.bottleneck, self.num_labels)

    def round_bytes(self, window_size: int) -> int:
        """Peak anonymous memory of a device's training round with this window: prefix and window follow each other."""
        return max(self.prefix.anonymous_bytes, self.windows[window_size].anonymous_bytes)

    def to_json(self) -> bytes:
        """The manifest as it lies in the bundle; equal manifests give equal bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def parse_manifest(data: bytes, where: str) -> Manifest:
    """A manifest from its bytes. Raises BundleError, naming `where`, when it is damaged or of a newer format
    version."""
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON ({error}); export the bundle again.") from error
    if not isinstance(raw, dict) or raw.get("format") != "chainfed-bundle":
        raise BundleError(f"{where} is no ChainFed manifest; give the folder that `chainfed export` wrote.")
    version = raw.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION or version < 1:
        raise BundleError(
            f"{where} has bundle format version {version}, but this ChainFed reads up to {FORMAT_VERSION}; "
            "install a newer ChainFed or export the bundle again."
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{where}: field {place} is wrong ({first['msg']}); export the bundle again.") from error
    for path in manifest.files:
        if path.startswith("/") or ".." in Path(path).parts or "\\" in path:
            raise BundleError(f"{where} names a file outside the bundle ({path!r}); do not use this bundle.")
    return manifest


class Bundle:
    """A bundle folder. Opening reads the manifest only; `verify_files` reads everything."""

    def __init__(self, folder: Path) -> None:
        """Raises BundleError when `folder` holds no readable manifest or lacks a file that it names or a file has
        another size."""
        self.folder = folder
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise BundleError(
                f"{folder} is no bundle: it has no {MANIFEST_FILE}. Make one with `chainfed export MODEL --out BUNDLE`."
            )
        self.manifest_bytes = path.read_bytes()
        self.manifest = parse_manifest(self.manifest_bytes, str(path))
        self.manifest_sha256 = sha256_hex(self.manifest_bytes)
        for name, entry in self.manifest.files.items():
            file = folder / name
            if not file.is_file():
                raise BundleError(f"{folder} lacks {name}; export the bundle again.")
            if file.stat().st_size != entry.bytes:
                raise BundleError(
                    f"{file} has {file.stat().st_size} bytes, the manifest says {entry.bytes}: it is truncated or "
                    f"was changed; "
                    "export the bundle again."
                )

    def path(self, name: str) -> Path:
        """The path of a file that the manifest names. Raises BundleError when it names none such."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder / MANIFEST_FILE} names no file {name!r}; export the bundle again.")
        return self.folder / name

    def verify_files(self) -> None:
        """Raises BundleError when a file's SHA-256 is not the manifest's."""
        for name, entry in self.manifest.files.items():
            if sha256_file(self.folder / name) != entry.sha256:
                raise BundleError(
                    f"{self.folder / name} does not have the SHA-256 that the manifest names: the file or the "
                    f"manifest was changed; "
                    "export the bundle again."
                )
