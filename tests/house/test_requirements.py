"""The locks are complete, hashed, consistent with pyproject.toml and with each other."""

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("bootstrap", "base", "dev")
HEAVY = {"coremltools", "executorch", "matplotlib", "tokenizers", "torch", "transformers"}


def read_lock(root: Path, name: str) -> list[Requirement]:
    """The requirements in a lock; asserts that each is an exact version with a hash."""
    text = (root / "requirements" / f"{name}.txt").read_text()
    entries = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "").splitlines()
    found = []
    for entry in entries:
        requirement = Requirement(entry.split("--hash")[0].strip())
        assert "--hash=sha256:" in entry, f"{name}.txt: {requirement} has no hash"
        assert str(requirement.specifier).startswith("=="), f"{name}.txt: {requirement} is not exact"
        found.append(requirement)
    assert found
    return found


def versions(lock: list[Requirement]) -> set[tuple[str, str]]:
    return {(canonicalize_name(entry.name), str(entry.specifier)) for entry in lock}


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_is_exact_and_hashed(root: Path, name: str) -> None:
    read_lock(root, name)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_host_and_no_path(root: Path, name: str) -> None:
    for line in (root / "requirements" / f"{name}.txt").read_text().splitlines():
        assert "://" not in line
        assert not re.search(r"(^|\s)(--(index|extra|find|trusted)|/)", line), line


def test_locks_answer_every_requirement(root: Path, pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    extras = [entry for extra in project["optional-dependencies"].values() for entry in extra]
    wanted = {"base": project["dependencies"], "dev": project["dependencies"] + extras}
    for name, requirements in wanted.items():
        lock = read_lock(root, name)
        for requirement in map(Requirement, requirements):
            pinned = [entry for entry in lock if canonicalize_name(entry.name) == canonicalize_name(requirement.name)]
            assert pinned, f"{name}.txt lacks {requirement}; run 'make requirements'"
            for entry in pinned:
                version = str(entry.specifier).removeprefix("==")
                assert requirement.specifier.contains(version), f"{name}.txt has {entry}, not {requirement}"


def test_locks_agree(root: Path) -> None:
    everything = versions(read_lock(root, "dev"))
    assert versions(read_lock(root, "base")) <= everything
    assert versions(read_lock(root, "bootstrap")) <= everything


def test_base_lock_serves_a_coordinator_without_torch(root: Path) -> None:
    assert {name for name, _ in versions(read_lock(root, "base"))}.isdisjoint(HEAVY)


def test_build_requirements_are_pinned_among_the_dev_packages(pyproject: dict[str, Any]) -> None:
    """The editable install builds without isolation, so what it builds with must be installed already."""
    assert set(pyproject["build-system"]["requires"]) <= set(pyproject["project"]["optional-dependencies"]["dev"])


def test_extras_agree_on_torch_and_executorch(pyproject: dict[str, Any]) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    for name in ("torch", "executorch"):
        pins = {entry for extra in ("toolchain", "harness") for entry in extras[extra] if entry.startswith(name)}
        assert len(pins) == 1
