"""Progress on work that lasts longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """A bar per piece of work on standard error, shown only once a second has passed.

    Args:
        enabled: True, False, or None to show bars only on a terminal.
    """

    def __init__(self, enabled: bool | None = None):
        self.enabled = sys.stderr.isatty() if enabled is None else enabled

    def track(self, items: Iterable[T], label: str) -> Iterator[T]:
        """Yield the items and show how many are done."""
        if not self.enabled:
            yield from items
            return
        from rich.console import Console
        from rich.progress import Progress as Bar

        total = len(items) if isinstance(items, Sized) else None
        started = time.monotonic()
        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total, visible=False)
            for item in items:
                yield item
                bar.update(task, advance=1, visible=time.monotonic() - started > 1)
