"""The base install serves a coordinator: it imports with every heavy package out of reach."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
for name in ("torch", "executorch", "transformers", "tokenizers", "matplotlib"):
    sys.modules[name] = None
imported = 0
for root in ("chainfed.v1", "chainfed.core", "chainfed.coordinator"):
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        if ".migrations." not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            imported += 1
sides = {name.split(".")[1] for name in sys.modules if name.startswith("chainfed.")}
print(imported > 10, *sorted(sides))
"""


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_coordinator_imports_without_torch() -> None:
    assert run("-c", PROGRAM).split() == ["True", "coordinator", "core", "v1"]


def test_command_line_starts_without_torch() -> None:
    program = "import sys; sys.modules['torch'] = None; from chainfed.core.cli import main; main(['--help'])"
    assert "coordinator" in run("-c", program)
