"""Generates the Python code of the protocol, beside the `.proto` files it comes from.

The generated modules are built, not committed. Hatchling calls the hook for a wheel and for an editable
install; `make protos` runs this file as a script. A module is rewritten only when its content changes, so
a build never disturbs a process that is importing it.
"""

import shlex
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = "protos"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(root: Path) -> list[Path]:
    """Compiles every `.proto` file under `root/protos` and returns the generated files, sorted.

    A generated file whose `.proto` file is gone is removed.

    Raises:
        RuntimeError: the compiler found an error; it has printed where.
    """
    from grpc_tools import protoc

    protos = root / PROTOS
    sources = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        if sources:
            status = protoc.main(
                [
                    "protoc",
                    f"--proto_path={protos}",
                    f"--proto_path={resources.files('grpc_tools') / '_proto'}",
                    f"--plugin=protoc-gen-mypy_grpc={_grpc_stub_plugin(Path(scratch))}",
                    *(f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")),
                    f"--mypy_grpc_out=quiet:{scratch}",
                    *sources,
                ]
            )
            if status != 0:
                raise RuntimeError("the protocol compiler failed; its message is above")
        fresh = {
            path.relative_to(scratch): path.read_bytes()
            for pattern in GENERATED
            for path in Path(scratch).rglob(pattern)
        }
    for name, content in fresh.items():
        _write_if_changed(protos / name, content)
    for pattern in GENERATED:
        for path in protos.rglob(pattern):
            if path.relative_to(protos) not in fresh:
                path.unlink()
    return sorted(protos / name for name in fresh)


def _grpc_stub_plugin(folder: Path) -> Path:
    """Writes a launcher for the stub generator that uses this very interpreter, wherever PATH points."""
    plugin = folder / "protoc-gen-mypy_grpc"
    program = "from mypy_protobuf.main import grpc; grpc()"
    plugin.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(program)}\n")
    plugin.chmod(0o755)
    return plugin


def _write_if_changed(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


class ProtocolBuildHook(BuildHookInterface[Any]):
    """Runs `generate` before Hatchling collects the files of a wheel or of an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates the code and marks it as part of the distribution, though git ignores it."""
        root = Path(self.root)
        build_data["artifacts"].extend(path.relative_to(root).as_posix() for path in generate(root))


if __name__ == "__main__":
    for generated in generate(Path(__file__).resolve().parent):
        print(generated.relative_to(Path(__file__).resolve().parent))
