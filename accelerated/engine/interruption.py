"""Signals as requests to finish the step: to save and end, or to save and go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Asked:
    """What signals asked for: to end (the number of the first that did, or 0), and to save."""

    stop: int = 0
    save: bool = False

    def take(self) -> tuple[int, bool]:
        """Return (stop, save), and forget about save."""
        save = self.save
        # A signal that arrives in between is not forgotten.
        if save:
            self.save = False
        return self.stop, save


@contextmanager
def interruptible() -> Iterator[Asked]:
    """Yield what SIGINT, SIGTERM, SIGHUP (end) and SIGUSR1 (save) ask for from now on.

    A second SIGINT interrupts as usual. A signal that is ignored, such as SIGHUP under nohup, stays
    ignored. Outside the main thread signals cannot be handled, and nothing is ever asked.
    """
    asked, previous = Asked(), {}
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(number, _):
        asked.stop = asked.stop or number
        if number == signal.SIGINT:
            signal.signal(number, previous[number])

    def save(*_):
        asked.save = True

    for number in (*STOPPING, signal.SIGUSR1):
        # Shells start background jobs with SIGINT ignored, and `kill -INT` means them all the same.
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            previous[number] = signal.getsignal(number)
            signal.signal(number, save if number == signal.SIGUSR1 else stop)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
