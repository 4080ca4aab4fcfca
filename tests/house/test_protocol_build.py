"""The build hook writes the protocol's Python code, and nothing when there is nothing new."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

PROTO = """syntax = "proto3";
package chainfed.v1;
message PingRequest { string name = 1; }
message PingResponse {}
service PingService { rpc Ping(PingRequest) returns (PingResponse); }
"""


@pytest.fixture(scope="module")
def build_hook(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", root / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generates_beside_the_proto_and_cleans_up(build_hook: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "protos/chainfed/v1"
    folder.mkdir(parents=True)
    (folder / "ping.proto").write_text(PROTO)

    generated = build_hook.generate(tmp_path)

    names = ["ping_pb2.py", "ping_pb2.pyi", "ping_pb2_grpc.py", "ping_pb2_grpc.pyi"]
    assert [path.relative_to(folder).as_posix() for path in generated] == names
    assert "from chainfed.v1 import ping_pb2" in (folder / "ping_pb2_grpc.py").read_text()
    written = {path: path.stat().st_mtime_ns for path in generated}

    build_hook.generate(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in generated} == written

    (folder / "ping.proto").unlink()
    assert build_hook.generate(tmp_path) == []
    assert list(folder.iterdir()) == []


def test_a_broken_proto_stops_the_build(build_hook: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "protos/chainfed/v1"
    folder.mkdir(parents=True)
    (folder / "broken.proto").write_text("this is no protocol")
    with pytest.raises(RuntimeError, match="protocol compiler failed"):
        build_hook.generate(tmp_path)


def test_base_install_is_as_new_as_the_generated_code(root: Path, pyproject: dict[str, Any]) -> None:
    """Generated code refuses an older runtime when it is imported; the dependencies must rule that out."""
    lowest = {
        requirement.name: re.findall(r">=([\d.]+)", str(requirement.specifier))
        for requirement in map(Requirement, pyproject["project"]["dependencies"])
    }
    for path in (root / "protos/chainfed/v1").glob("*_pb2.py"):
        assert re.findall(r"Protobuf Python Version: ([\d.]+)", path.read_text()) == lowest["protobuf"]
    for path in (root / "protos/chainfed/v1").glob("*_pb2_grpc.py"):
        assert re.findall(r"GRPC_GENERATED_VERSION = '([\d.]+)'", path.read_text()) == lowest["grpcio"]
