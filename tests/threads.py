"""Work in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


def check_threads_end(work: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Each number is worked on in a thread of its own; all have to end."""
    threads = [threading.Thread(target=work, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
