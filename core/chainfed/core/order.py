"""The random draws that must be equal in every language, written down to the bit.

The generator is SplitMix64 (Steele, Lea and Flood, 2014): `state += 0x9E3779B97F4A7C15`, then two xor-shift-multiply
rounds, all modulo
2^64. A bounded draw takes the top bits of the output under the smallest covering power of two and rejects what lies
outside, so it
is unbiased. A permutation is Fisher-Yates from the last position down. `tests/vectors/order.json` holds examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


class SplitMix64:
    """A generator of uniform 64-bit integers. `seed`: any integer, taken modulo 2^64."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        """The next integer in [0, 2^64)."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound). Raises ValueError when `bound` is not in 1..2^63."""
        if not 1 <= bound <= 1 << 63:
            raise ValueError(f"bound {bound} is outside 1..2^63")
        bits = (bound - 1).bit_length()
        if bits == 0:
            return 0
        while True:
            draw = self.next() >> (64 - bits)
            if draw < bound:
                return draw


def derive_seed(*parts: int | str) -> int:
    """A 64-bit seed from parts: the first 8 bytes, little-endian, of SHA-256 over the decimal or UTF-8 parts joined
    by '/'."""
    joined = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(joined.encode()).digest()[:8], "little")


def permutation(count: int, generator: SplitMix64) -> list[int]:
    """A uniform permutation of 0..count-1 (Fisher-Yates, from the last position down to 1)."""
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = generator.below(last + 1)
        order[last], order[other] = order[other], order[last]
    return order


def sample(items: Sequence[T], count: int, generator: SplitMix64) -> list[T]:
    """`count` items without replacement (all of them when there are fewer), in the order of the draw."""
    return [items[index] for index in permutation(len(items), generator)[:count]]


def batches(num_examples: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """The example indices of every training step: one permutation an epoch from one generator, cut into batches.

    The last batch of an epoch may be shorter than `batch_size`.
    """
    generator = SplitMix64(seed)
    steps: list[list[int]] = []
    for _ in range(epochs):
        order = permutation(num_examples, generator)
        steps += [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]
    return steps
