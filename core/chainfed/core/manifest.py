"""`manifest.json` of a bundle: what the bundle holds and how to run it. `docs/bundle.md` is the specification in
prose."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from chainfed.core.errors import BundleError
from chainfed.core.json_document import parse_document, shown
from chainfed.core.tensors import sha256_file, sha256_hex, state_shapes

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
ADAPTERS_FILE = "adapters.safetensors"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "config.json"
EMBEDDINGS_FILE = "weights/embeddings.safetensors"
OUTPUT_FILE = "weights/output.safetensors"
LANGUAGE_HEAD_FILE = "weights/lm_head.safetensors"
BLOCK_PROGRAM = "block"

MAX_MANIFEST_BYTES = 10_000_000
MAX_LAYERS = 10_000
MAX_PATH_LENGTH = 200

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


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


def _all_different(names: tuple[str, ...]) -> tuple[str, ...]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{shown(repeated[0])} stands there more than once")
    return names


def _window_sizes(windows: Any) -> Any:
    """JSON's keys as numbers; refuses those that are numbers only to a lenient reader, such as " 1" and "01"."""
    if not isinstance(windows, dict):
        return windows
    for key in windows:
        if isinstance(key, str) and not re.fullmatch("[1-9][0-9]{0,4}", key):
            raise ValueError(f"{shown(key)} is no window size")
    return {int(key): plan for key, plan in windows.items()}


def _addressable(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(extent or 1 for extent in shape) >= 2**60:
        raise ValueError("the product of the shape is too large")
    return shape


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", max_length=64)]
Positive = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
NonNegative = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Extent = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Size = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Layers = Annotated[int, Field(strict=True, ge=1, le=MAX_LAYERS)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], AfterValidator(_all_different)]
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
    shape: Annotated[tuple[Extent, ...], Field(max_length=8), AfterValidator(_addressable)]
    dtype: TensorDtype

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def _names_differ(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    _all_different(tuple(spec.name for spec in specs))
    return specs


TensorSpecs = Annotated[tuple[TensorSpec, ...], AfterValidator(_names_differ)]


class ProgramEntry(_Part):
    """A program, its tensors in the order in which it takes and gives them, and the bytes that its planned arena
    needs."""

    file: str
    inputs: TensorSpecs
    outputs: TensorSpecs
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


class LanguageHead(_Part):
    """Where a language model's head lies, one (vocabulary, hidden) tensor; a tied one is the token embeddings'."""

    file: str
    tensor: str


class ModelFacts(_Part):
    """The frozen model."""

    family: str
    num_layers: Layers
    hidden_size: Size
    vocab_size: Size
    num_parameters: Positive
    embedding_tensors: Names
    layer_tensors: Names
    output_tensors: Names = ()
    language_head: LanguageHead | None = None
    dtype: WeightDtype = "f32"


class Chat(_Part):
    """How a conversation becomes one text, by what stands between the contents of its turns.

    `between["user>assistant"]` stands between a user's turn and the answer; "start" and "end" are the ends of the
    conversation, and `between["user>"]` asks for an answer. `end_of_turn` is the part after an answer that the model
    learns to say. `strip`: contents lose the white space around them. `special_tokens`: the tokenizer adds its own.
    """

    between: dict[str, str]
    end_of_turn: str
    strip: bool
    special_tokens: bool


class Task(_Part):
    """What is learnt.

    A classifier has `labels`, of which `labels[k]` names label k, and `pooling`. A language model sends at most
    `max_target_tokens` positions of a row through its head, has several texts in a row where `packing` is set, and
    reads conversations by `chat`.
    """

    kind: Literal["classification", "language_modelling"]
    labels: Names = ()
    pooling: Literal["mean", "cls", "last"] | None = None
    max_target_tokens: NonNegative = 0
    packing: bool = False
    chat: Chat | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "classification" and (len(self.labels) < 2 or self.pooling is None):
            raise ValueError("a classifier needs at least two labels and a pooling")
        if self.kind == "language_modelling" and (self.labels or self.max_target_tokens < 1):
            raise ValueError("a language model has no labels and at least one target a row")
        return self


class Tokenizer(_Part):
    """How text becomes token ids: `tokenizer.json` (Hugging Face tokenizers), cut and padded to the program's
    sequence length."""

    pad_token_id: NonNegative


class Shapes(_Part):
    """Static shapes of every program."""

    batch_size: Size
    seq_len: Size


class Adapter(_Part):
    """Bottleneck adapters (Eq. 1)."""

    bottleneck: Size


class Optimizer(_Part):
    """The optimiser inside the training programs. `beta1`, `beta2`, `eps` and `weight_decay` are unused by sgd."""

    name: Literal["sgd", "adamw"]
    beta1: Real
    beta2: Real
    eps: Real
    weight_decay: Real
    max_grad_norm: Annotated[Real, Field(gt=0)]


class TrainingDefaults(_Part):
    """What a run uses where its configuration says nothing."""

    adapter_lr: Annotated[Real, Field(gt=0)]
    head_lr: Annotated[Real, Field(gt=0)]
    final_head_lr: Annotated[Real, Field(ge=0)]
    global_loss_weight: Annotated[Real, Field(ge=0)]
    global_branch_statistics: Literal["window_end", "last_layer"]
    foat_threshold: Annotated[Real, Field(ge=0, le=1)]
    foat_examples: Annotated[NonNegative, Field(ge=2)]
    warmup_rounds: NonNegative
    local_epochs: Positive


class Manifest(_Part):
    """The whole manifest.

    `programs` are keyed "embed", "block" (or "block_00", "block_01" ...), "score", "window_q1" ..., a classifier's also
    "pool" and "head", a language model's "next"; `windows` by Q.
    """

    format: Literal["chainfed-bundle"]
    format_version: Positive
    created_by: dict[str, str]
    model: ModelFacts
    task: Task
    tokenizer: Tokenizer
    shapes: Shapes
    adapter: Adapter
    optimizer: Optimizer
    defaults: TrainingDefaults
    programs: dict[str, ProgramEntry]
    windows: Annotated[dict[Layers, MemoryPlan], BeforeValidator(_window_sizes), Field(min_length=1)]
    prefix: MemoryPlan
    files: dict[str, FileEntry]

    @property
    def num_labels(self) -> int:
        """Labels of the task; a language model has none, and then neither heads nor statistics."""
        return len(self.task.labels)

    @property
    def is_language_model(self) -> bool:
        """Whether the task is to predict tokens."""
        return self.task.kind == "language_modelling"

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts can be read; a language model without a tokenizer takes token ids alone."""
        return TOKENIZER_FILE in self.files

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
        head = [self.model.language_head.file] if self.model.language_head else []
        return list(dict.fromkeys([EMBEDDINGS_FILE, *(layer_file(layer) for layer in chosen), *output, *head]))

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
    """A manifest from its bytes. Raises BundleError, naming `where`, when it is damaged, contradicts itself, names a
    file outside the bundle or is of a newer format version."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{where} is no ChainFed manifest: it has more than {MAX_MANIFEST_BYTES} bytes; export the bundle again."
        )
    try:
        raw = parse_document(data)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON ({error}); export the bundle again.") from error
    if not isinstance(raw, dict) or raw.get("format") != "chainfed-bundle":
        raise BundleError(f"{where} is no ChainFed manifest; give the folder that `chainfed export` wrote.")
    version = raw.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise BundleError(
            f"{where} has bundle format version {version if type(version) is int else 'unknown'}, but this ChainFed "
            f"reads up to {FORMAT_VERSION}; install a newer ChainFed or export the bundle again."
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = shown(".".join(str(part) for part in first["loc"]))
        raise BundleError(f"{where}: field {place} is wrong ({first['msg']}); export the bundle again.") from error
    for path in manifest.files:
        if not _PATH.fullmatch(path) or len(path) > MAX_PATH_LENGTH:
            raise BundleError(f"{where} names a file outside the bundle ({shown(path)}); do not use this bundle.")
    contradiction = next(_contradictions(manifest), None)
    if contradiction is not None:
        raise BundleError(f"{where} contradicts itself: {contradiction}; export the bundle again.")
    return manifest


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What the parts of a manifest say against each other, one clause each."""
    layers = manifest.model.num_layers
    if max(manifest.windows) > layers:
        yield f"it has a window of {max(manifest.windows)} layers, but the model has {layers}"
    if manifest.tokenizer.pad_token_id >= manifest.model.vocab_size:
        yield f"the padding token {manifest.tokenizer.pad_token_id} is outside the vocabulary"
    for name in (*(entry.file for entry in manifest.programs.values()), *manifest.weight_files()):
        if name not in manifest.files:
            yield f"it needs the file {shown(name)}, which is not among its files"


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
        with path.open("rb") as file:
            self.manifest_bytes = file.read(MAX_MANIFEST_BYTES + 1)
        self.manifest = parse_manifest(self.manifest_bytes, str(path))
        self.manifest_sha256 = sha256_hex(self.manifest_bytes)
        for name, entry in self.manifest.files.items():
            self._check_file(folder / name, name, entry.bytes)

    def _check_file(self, file: Path, name: str, num_bytes: int) -> None:
        if not file.is_file():
            raise BundleError(f"{self.folder} lacks {name}; export the bundle again.")
        if not file.resolve().is_relative_to(self.folder.resolve()):
            raise BundleError(
                f"{file} is a link to a file outside the bundle; do not use this bundle, or put the file itself there."
            )
        if file.stat().st_size != num_bytes:
            raise BundleError(
                f"{file} has {file.stat().st_size} bytes, the manifest says {num_bytes}: it is truncated or was "
                "changed; export the bundle again."
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
