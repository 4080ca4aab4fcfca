"""Writes `tests/vectors/device.json`: the small parts of `docs/device.md` worked out by slow, obvious code.

`make vectors` runs it. It imports nothing of ChainFed: sums are loops, products of whole numbers are Python's own,
tensor files come from the safetensors library.
"""

from __future__ import annotations

import json
import math
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

FILE = Path(__file__).parent / "device.json"
Rows = list[list[float]]


def main() -> None:
    generator = random.Random(20)
    content = {
        "about": "docs/device.md: sums, moments and CKA (section 7), tensor files (3) and the journal (5). Numbers of "
        "`rows`, `x`, `y`, `mean`, `variance` and `values` are float32, all others float64.",
        "sums": [sums(generator, count) for count in (0, 1, 7, 100)],
        "moments": [moments(rows(generator, count, width, 3.0)) for count, width in ((1, 3), (5, 4), (33, 6))],
        "cka": [cka(generator, *sizes) for sizes in (((4, 3), 5), ((300, 2, 257), 7), ((1,), 4))] + edges(generator),
        "tensor_files": [tensor_file(generator, shapes) for shapes in SHAPES],
        "journals": journals(),
    }
    parts = [f' "{key}": {_lines(value)}' for key, value in content.items()]
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _lines(value: Any) -> str:
    """JSON with a case a line."""
    if isinstance(value, str):
        return json.dumps(value)
    return "[\n" + ",\n".join("  " + json.dumps(case) for case in value) + "\n ]"


SHAPES: tuple[dict[str, list[int]], ...] = (
    {},
    {"adapters.0.up": [2, 3], "adapters.0.down": [2, 3]},
    {"heads.10.bias": [3], "heads.2.bias": [3], "heads.2.weight": [3, 2], "empty": [0, 4], "scalar": []},
)


def float32(value: float) -> float:
    return float(np.float32(value))


def rows(generator: random.Random, count: int, width: int, mean: float) -> Rows:
    return [[float32(generator.gauss(mean, 1.0)) for _ in range(width)] for _ in range(count)]


def in_order(terms: list[float]) -> float:
    total = 0.0
    for term in terms:
        total = total + term
    return total


def sums(generator: random.Random, count: int) -> dict[str, Any]:
    terms = [generator.gauss(0.0, 1.0) * 10.0 ** generator.randint(-8, 8) for _ in range(count)]
    return {"terms": terms, "sum": in_order(terms)}


def moments(values: Rows) -> dict[str, Any]:
    means, variances = [], []
    for column in zip(*values, strict=True):
        mean = in_order(list(column)) / len(values)
        squares = []
        for value in column:
            centred = value - mean
            squares.append(centred * centred)
        means.append(float32(mean))
        variances.append(float32(in_order(squares) / len(values)))
    return {"rows": values, "mean": means, "variance": variances}


def cka(generator: random.Random, counts: tuple[int, ...], width: int) -> dict[str, Any]:
    x = [rows(generator, count, width, 5.0) for count in counts]
    y = [
        [[float32(math.tanh(value - 5.0) + 0.1 * generator.gauss(0.0, 1.0)) for value in row] for row in piece]
        for piece in x
    ]
    return scored(x, y)


def edges(generator: random.Random) -> list[dict[str, Any]]:
    """Nothing varies; one value is a million times the others; values next to a power of two, whose halves are even."""
    x = [rows(generator, 6, 3, 0.0)]
    still = [[[1.5, -2.0, 0.0] for _ in range(6)]]
    spike = [[[*row[:2], 1e6 if number == 2 else row[2]] for number, row in enumerate(x[0])]]
    halves = [[[4.0, -4.0, float32(2.0**-20 * number)] for number in range(6)]]
    return [scored(x, still), scored(x, spike), scored(x, halves)]


def scored(x: list[Rows], y: list[Rows]) -> dict[str, Any]:
    norms = [norm(*pair) for pair in ((x, y), (x, x), (y, y))]
    cross, left, right = norms
    score = 1.0 if left == 0.0 or right == 0.0 else min(1.0, max(0.0, cross / math.sqrt(left * right)))
    return {"x": x, "y": y, "norms": norms, "score": score}


def whole_tiles(pieces: list[Rows]) -> list[list[list[int]]]:
    tokens = [row for piece in pieces for row in piece]
    means = [in_order(list(column)) / len(tokens) for column in zip(*tokens, strict=True)]
    largest = max(abs(value - mean) for row in tokens for value, mean in zip(row, means, strict=True))
    power = 0
    if largest:
        while 2.0**power <= largest:
            power += 1
        while 2.0 ** (power - 1) > largest:
            power -= 1
    scale = 2.0 ** (22 - power) if largest else 0.0
    whole = [[[round((v - m) * scale) for v, m in zip(row, means, strict=True)] for row in piece] for piece in pieces]
    return [piece[start : start + 256] for piece in whole for start in range(0, len(piece), 256)]


def norm(left: list[Rows], right: list[Rows]) -> float:
    products: list[list[float]] = [[0.0] * len(right[0][0]) for _ in left[0][0]]
    for a, b in zip(whole_tiles(left), whole_tiles(right), strict=True):
        for i, row in enumerate(products):
            for j in range(len(row)):
                exact = sum(x[i] * y[j] for x, y in zip(a, b, strict=True))
                assert abs(exact) <= 2**53
                row[j] = row[j] + float(exact)
    return in_order([in_order([row[j] * row[j] for row in products]) for j in range(len(products[0]))])


def tensor_file(generator: random.Random, shapes: dict[str, list[int]]) -> dict[str, Any]:
    tensors = {
        name: np.array([generator.gauss(0.0, 1.0) for _ in range(math.prod(shape))], np.float32).reshape(shape)
        for name, shape in shapes.items()
    }
    return {
        "tensors": {name: {"shape": list(t.shape), "values": t.ravel().tolist()} for name, t in tensors.items()},
        "hex": safetensors.numpy.save(tensors).hex(),
    }


def journals() -> list[dict[str, Any]]:
    header = {"header": {"assignment": "a", "boot": "b", "data": "d", "manifest": "m"}}
    records = [header, {"pass": [0, 1]}, {"step": ["window", [0.5, 1e-07, 123456.75, 3.0]]}, {"score": 0.1}]
    lines = [line(record) for record in records]
    whole = b"".join(lines)
    wrong = bytes([lines[2][12] ^ 1])
    return [
        journal("whole", whole, records),
        journal("nothing", b"", []),
        journal("its last line is cut", whole[:-1], records[:3]),
        journal("its last line is cut in the checksum", whole[: len(whole) - len(lines[3]) + 5], records[:3]),
        journal(
            "a byte of the third line is wrong",
            whole.replace(lines[2], lines[2][:12] + wrong + lines[2][13:]),
            records[:2],
        ),
        journal("an empty line", lines[0] + b"\n" + lines[1], records[:1]),
        journal("a line that is no object", lines[0] + line([1]) + lines[1], records[:1]),
        journal("a line that is no JSON", lines[0] + b"%08x {" % zlib.crc32(b"{") + b"\n" + lines[1], records[:1]),
    ]


def line(record: object) -> bytes:
    body = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def journal(name: str, data: bytes, records: list[Any]) -> dict[str, Any]:
    return {"name": name, "hex": data.hex(), "records": records}


if __name__ == "__main__":
    main()
