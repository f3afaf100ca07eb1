"""Being told to end by a signal, and when a process does so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: signals that ask to end and to be run again: what schedulers send before they kill
AGAIN = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
SIGNALS = [signal.SIGINT, *AGAIN]


class ToldToEnd(BaseException):
    """The process was told to end by a signal other than Ctrl-C.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class EndRequest:
    """The wish that this process ends: at once, or when it has saved what it would lose."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all signals; the next one ends the process at once."""
        #: the signal that asked, if one did
        self.number: int | None = None
        #: whether the process has work that it saves before it ends
        self.holding = False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Receive signals in this context; one that was ignored before stays so.

        Outside of the main thread, where Python receives none, nothing changes.
        """
        self.clear()
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    handlers[number] = signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.clear()

    def obey(self) -> None:
        """End now if a signal has asked for it.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            ToldToEnd: after another signal.
        """
        if self.number is not None:
            self._end(self.number)

    def _receive(self, number: int, frame: Any) -> None:
        # A signal of a scheduler may come twice, from it and from a parent that passes it on; one
        # who presses Ctrl-C again does not want to wait.
        again = number == signal.SIGINT and self.number is not None
        if again or not self.holding:
            self._end(number)
        if self.number is None:
            self.number = number

    def _end(self, number: int) -> None:
        self.number, self.holding = number, True  # what is saved on the way out is not cut off
        raise KeyboardInterrupt if number == signal.SIGINT else ToldToEnd(number)


#: signals are for the whole process, and so is this
REQUEST = EndRequest()
