"""Progress of a command that knows its steps by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import Progress


@contextlib.contextmanager
def shown_steps(display: Progress, title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback that moves one bar of `display`: what is next, how many steps are done, how many in all."""
    task = display.add_task(title, total=None)

    def show(step: str, done: int, total: int) -> None:
        display.update(task, description=f"{title}: {step}", completed=done, total=total)

    yield show
