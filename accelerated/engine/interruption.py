"""SIGINT as a request to finish the step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT sets; a second one interrupts as usual.

    Outside the main thread signals cannot be handled, and the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def finish(*_):
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, finish)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
