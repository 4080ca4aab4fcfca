"""`chainfed generate`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from chainfed.core.chat import Message, question
from chainfed.core.console import json_option, out, print_json, progress
from chainfed.core.errors import BadInputError
from chainfed.core.manifest import TOKENIZER_FILE, Bundle
from chainfed.runtime.language_model import continue_greedily
from chainfed.runtime.program import set_threads
from chainfed.runtime.tokenization import open_tokenizer
from chainfed.toolchain.model_state import read_model_state


@click.command(epilog='Example: chainfed generate ./bundle --adapters adapters.safetensors --chat "Name three birds."')
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--text", help="A text to go on with.")
@click.option("--chat", help="A question to answer, asked as the model's conversations are written.")
@click.option("--ids", metavar="LIST", help="Token ids to go on with, such as 1,403,407.")
@click.option("--adapters", type=click.Path(path_type=Path), help="The adapters of a run.  [default: untrained]")
@click.option("--tokens", default=32, show_default=True, type=click.IntRange(min=1), help="How many to add at most.")
@json_option
def command(
    bundle: Path,
    text: str | None,
    chat: str | None,
    ids: str | None,
    adapters: Path | None,
    tokens: int,
    as_json: bool,
) -> None:
    """Continue a text with the language model of BUNDLE, the most likely token each time.

    It runs the programs that devices run, the whole model for every token: to look at what a run has learnt, not to
    serve it.
    """
    opened = Bundle(bundle)
    if not opened.manifest.is_language_model:
        raise BadInputError(f"{bundle} is a classifier; use `chainfed evaluate` for it.")
    if sum(given is not None for given in (text, chat, ids)) != 1:
        raise BadInputError("Give exactly one of --text, --chat and --ids.")
    start = _parse_ids(ids, opened) if ids is not None else _encode(opened, text, chat)
    state = read_model_state(opened, adapters)
    set_threads(os.cpu_count() or 1)
    added: list[int] = []
    with progress() as display:
        task = display.add_task("Generating", total=tokens)
        for token in continue_greedily(opened, state, start, tokens):
            added.append(token)
            display.update(task, advance=1)
    words = open_tokenizer(opened.path(TOKENIZER_FILE)).decode(added) if opened.manifest.has_tokenizer else None
    if as_json:
        print_json({"given": start, "added": added, "text": words})
        return
    out.print(words if words is not None else ",".join(map(str, added)), markup=False, highlight=False)


def _encode(bundle: Bundle, text: str | None, chat: str | None) -> list[int]:
    if not bundle.manifest.has_tokenizer:
        raise BadInputError(f"{bundle.folder} has no tokenizer; give token ids with --ids.")
    tokenizer = open_tokenizer(bundle.path(TOKENIZER_FILE))
    if text is not None:
        return list(tokenizer.encode(text).ids)
    form = bundle.manifest.task.chat
    if form is None:
        raise BadInputError(f"{bundle.folder} says nothing about conversations; give --text.")
    asked = question(form, [Message("user", chat or "")])
    return list(tokenizer.encode(asked, add_special_tokens=form.special_tokens).ids)


def _parse_ids(given: str, bundle: Bundle) -> list[int]:
    size = bundle.manifest.model.vocab_size
    try:
        ids = [int(part) for part in given.split(",")]
    except ValueError as error:
        raise BadInputError(f"--ids {given!r} is no list of token ids; write it like 1,403,407.") from error
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise BadInputError(f"--ids: {wrong[0]} is no token id of this model, which has 0 to {size - 1}.")
    return ids
