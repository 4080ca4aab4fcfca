"""The chain beside end-to-end training of all adapters and linear probing: same federation, rounds, order of data and
learning rates."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks import AGNEWS, YELP, Task, bundle_of, model_folder

from chainfed.core.console import megabytes, out, table

_DEVICES, _PER_ROUND, _ROUNDS, _SEEDS = 20, 5, 20, (0, 1, 2)
_WINDOW = "3"


def measure(shared: Path, folder: Path, quick: bool) -> None:
    """Runs what has not been run yet, one seed and data set after the other, and prints the table."""
    seeds, rounds = ((0,), 2) if quick else (_SEEDS, _ROUNDS)
    rows = table(
        f"{_DEVICES} devices, {_PER_ROUND} a round, {rounds} rounds, Dirichlet 1.0, {len(seeds)} seed(s)",
        *("data", "method", "accuracy (mean, each seed)", "sent by devices"),
    )
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for task in (AGNEWS, YELP):
        outcomes = [_one_seed(task, shared, folder, seed, rounds) for seed in seeds]
        results[task.name] = {method: [outcome[method] for outcome in outcomes] for method in outcomes[0]}
        for method, figures in results[task.name].items():
            accuracies = [100 * figure["accuracy"] for figure in figures]
            each = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
            sent = megabytes(statistics.mean(figure["bytes_up"] for figure in figures))
            rows.add_row(task.name, method, f"{statistics.mean(accuracies):.2f} ({each})", sent)
    out.print(rows)
    (folder / f"federation-{rounds}.json").write_text(json.dumps(results, indent=1))


def _one_seed(task: Task, shared: Path, folder: Path, seed: int, rounds: int) -> dict[str, dict[str, float]]:
    place = folder / f"federation-{rounds}" / f"{task.name}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    baselines = _baselines(task, shared, place / "baselines.json", seed, rounds)
    probing = baselines["linear_probing"]["curve"]
    outcome = {
        "linear probing, after its first round": {key: probing[0][key] for key in ("accuracy", "bytes_up")},
        "linear probing": baselines["linear_probing"],
        "end to end, all adapters": baselines["full_adapters"],
    }
    chain = _chain(task, shared, folder, place / f"q{_WINDOW}", seed, rounds)
    outcome["before any training"] = {"accuracy": chain["accuracy"]["before"], "bytes_up": 0}
    outcome[f"chain, Q={_WINDOW}"] = {"accuracy": chain["accuracy"]["after"], "bytes_up": chain["bytes_up"]}
    return {name: {key: figures[key] for key in ("accuracy", "bytes_up")} for name, figures in outcome.items()}


def _baselines(task: Task, shared: Path, result: Path, seed: int, rounds: int) -> dict[str, Any]:
    train, test = task.files(shared)
    options = {
        "model": model_folder(shared), "train": train, "test": test, "labels": len(task.labels(shared)), "out": result,
        "devices": _DEVICES, "per-round": _PER_ROUND, "rounds": rounds, "seq-len": task.seq_len, "seed": seed,
    }  # fmt: skip
    methods = json.loads(result.read_text())["methods"] if result.is_file() else {}
    if "full_adapters" not in methods:
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        subprocess.run([sys.executable, str(Path(__file__).with_name("federated_baselines.py")), *flags], check=True)
    outcomes: dict[str, Any] = json.loads(result.read_text())["methods"]
    return outcomes


def _chain(task: Task, shared: Path, folder: Path, place: Path, seed: int, rounds: int) -> dict[str, Any]:
    if not (place / "result.json").is_file():
        train, test = task.files(shared)
        command = [
            *(sys.executable, "-m", "chainfed.core", "emulate", str(bundle_of(task, shared, folder).folder)),
            *("--train", str(train), "--test", str(test), "--devices", str(_DEVICES), "--per-round", str(_PER_ROUND)),
            *("--rounds", str(rounds), "--partition", "dirichlet:1.0", "--window", _WINDOW, "--seed", str(seed)),
            *("--out", str(place), "--json"),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((place / "result.json").read_text())
    return result
