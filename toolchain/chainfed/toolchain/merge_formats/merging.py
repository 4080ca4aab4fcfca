"""Choosing the form in which a tuned model comes out, and making it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chainfed.core.errors import BadInputError
from chainfed.core.manifest import CONFIG_FILE, Bundle
from chainfed.toolchain.checkpoint import family_of
from chainfed.toolchain.merge import merge_bundle
from chainfed.toolchain.merge_formats import adapterhub, executorch, onnx
from chainfed.toolchain.merge_formats.agreement import Agreement
from chainfed.toolchain.new_folder import NewFolder

MergeFormat = Literal["hf", "onnx", "executorch", "adapters"]
Progress = Callable[[str, int, int], None]
"""Called with what is done next, how many steps are done, and how many there are."""

_MARKS = {"onnx": onnx.MODEL_FILE, "executorch": executorch.MODEL_FILE, "adapters": adapterhub.CONFIG_FILE}
"""The file by which a folder of each form is known, so that it may be replaced."""
_TUNED_FOLDER = ".tuned"
_STEPS = 4


@dataclass(frozen=True)
class MergeSettings:
    """What is to come out, and where.

    Attributes:
        adapters: the model state of a run, a safetensors file.
        out: the folder to write.
        merge_format: the form.
        seq_len: tokens that an ExecuTorch program takes; None for as many as the bundle's programs.
        tolerance: the largest difference of a logit from the Hugging Face folder's, relative where that exceeds 1.
        force: replace a folder of the same form that lies at `out`.
        model: the model that the bundle was exported from, whose own weights are then taken; None for the bundle's.
    """

    adapters: Path
    out: Path
    merge_format: MergeFormat = "hf"
    seq_len: int | None = None
    tolerance: float = 1e-4
    force: bool = False
    model: str | None = None


def merge_as(bundle: Bundle, settings: MergeSettings, on_progress: Progress | None = None) -> Agreement | None:
    """Writes the tuned model in the form that the settings name.

    ONNX and ExecuTorch are made from the Hugging Face folder, which lies beside them while they are made, and are held
    against it before anything appears at `settings.out`.

    Returns:
        How well the form agrees with the Hugging Face folder; None where it is not run here.

    Raises:
        BadInputError: the adapters do not exist, `out` exists, or a setting does not fit the form or the model.
        BundleError: the bundle is damaged, or the adapters are of another model or label set.
        VerificationError: the form gives other logits.
    """
    _check_settings(bundle, settings)
    if settings.merge_format == "hf":
        merge_bundle(bundle, settings.adapters, settings.out, settings.force, settings.model, on_progress)
        return None
    done = 0

    def report(step: str) -> None:
        nonlocal done
        if on_progress is not None:
            on_progress(step, done, _STEPS)
        done += 1

    with NewFolder(settings.out, settings.force, _MARKS[settings.merge_format]) as folder:
        agreement = _write(bundle, settings, folder, report)
        folder.commit()
    return agreement


def _write(
    bundle: Bundle, settings: MergeSettings, folder: NewFolder, report: Callable[[str], None]
) -> Agreement | None:
    if settings.merge_format == "adapters":
        report("writing the adapters")
        adapterhub.write_adapters(bundle, settings.adapters, folder)
        return None
    report("merging the weights")
    merged = merge_bundle(bundle, settings.adapters, folder.path(_TUNED_FOLDER), model=settings.model)
    if settings.merge_format == "onnx":
        agreement = onnx.write_onnx(bundle, merged, folder, settings.tolerance, report)
    else:
        seq_len = settings.seq_len or bundle.manifest.shapes.seq_len
        agreement = executorch.write_executorch(bundle, merged, folder, seq_len, settings.tolerance, report)
    shutil.rmtree(merged)
    return agreement


def _check_settings(bundle: Bundle, settings: MergeSettings) -> None:
    if settings.seq_len is None:
        return
    if settings.merge_format != "executorch":
        raise BadInputError(
            f"--seq-len has no meaning for --format {settings.merge_format}: only an ExecuTorch program has a fixed "
            "length; leave it out."
        )
    longest = family_of(bundle.folder, json.loads(bundle.path(CONFIG_FILE).read_bytes())).max_seq_len
    if not 1 <= settings.seq_len <= longest:
        raise BadInputError(f"--seq-len {settings.seq_len} does not fit: give 1 to {longest}, the model's positions.")
