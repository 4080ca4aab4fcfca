"""A cache of what is slow to make, lowered programs and their measured memory, by all that they depend on.

It lies in `$CHAINFED_CACHE`, else in the user's cache folder. A damaged entry counts as absent, and a cache
that cannot be written is no error.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from chainfed.core.tensors import sha256_hex

ENVIRONMENT_VARIABLE = "CHAINFED_CACHE"


class ProgramCache:
    """Entries by key: bytes, and facts about them as JSON."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where entries lie; None for the place that the environment names."""
        self.folder = folder or _default_folder()

    def load(self, key: str) -> tuple[bytes, dict[str, Any]] | None:
        """The bytes and facts stored under a key; None when there are none or they are damaged."""
        try:
            first_line, payload = self._path(key).read_bytes().split(b"\n", 1)
            header = json.loads(first_line)
            facts = header["facts"]
            if header["sha256"] != _checksum(facts, payload) or not isinstance(facts, dict):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return payload, facts

    def store(self, key: str, payload: bytes, facts: Mapping[str, Any]) -> None:
        """Stores bytes and facts under a key; a reader sees the whole entry or none."""
        header = json.dumps({"facts": dict(facts), "sha256": _checksum(facts, payload)}).encode()
        partial = self.folder / f".{key}.{os.getpid()}"
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(header + b"\n" + payload)
            partial.replace(self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / key


def content_key(*parts: Any) -> str:
    """One key for parts that JSON can hold, such as versions, source digests and shapes."""
    return sha256_hex(json.dumps(parts, sort_keys=True).encode())


def package_versions(*packages: str) -> dict[str, str]:
    """Installed version of each package; "source" for one that runs without being installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "source"
    return versions


def source_digest(modules: Iterable[str]) -> str:
    """A digest of the source of `chainfed` modules and of all `chainfed` modules that they need."""
    sources: dict[str, str] = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module in sources:
            continue
        spec = importlib.util.find_spec(module)
        origin = spec.origin if spec is not None else None
        source = Path(origin).read_text(encoding="utf-8") if origin and origin.endswith(".py") else ""
        sources[module] = source
        pending += _imported_modules(source)
    return sha256_hex(json.dumps(sources, sort_keys=True).encode())


def _imported_modules(source: str) -> set[str]:
    """Every `chainfed` module that a source imports, packages on the way included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            names = (alias.name for alias in node.names)
            found |= {f"{node.module}.{name}" for name in names if _is_module(node.module, name)}
    return {name for name in found if name.startswith("chainfed.")}


def _is_module(package: str, name: str) -> bool:
    """Whether `package` has a module of this name, without importing either."""
    spec = importlib.util.find_spec(package) if package.startswith("chainfed.") else None
    places = (spec.submodule_search_locations or []) if spec is not None else []
    return any(Path(place, f"{name}.py").is_file() or Path(place, name, "__init__.py").is_file() for place in places)


def _checksum(facts: Mapping[str, Any], payload: bytes) -> str:
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    digest.update(payload)
    return digest.hexdigest()


def _default_folder() -> Path:
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "chainfed"
