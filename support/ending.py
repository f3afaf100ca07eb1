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
        #: whether the process ends when its work does; signals then change no exit status
        self.ends_process = False
        self.clear()

    def clear(self) -> None:
        """Forget all signals; the next one ends the process at once."""
        #: the signal that asked, if one did
        self.number: int | None = None
        #: whether the process has work that it saves before it ends
        self.holding = False
        #: whether it ends already
        self.ending = False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Receive signals in this context; one that was ignored before stays so.

        Outside of the main thread, where Python receives none, nothing changes. After it, handlers
        are what they were; where ``ends_process``, the signals of schedulers are ignored.
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
            self.ending = True
            for number, handler in handlers.items():
                ignored = self.ends_process and number in AGAIN
                signal.signal(number, signal.SIG_IGN if ignored else handler)
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
        if self.ending and number != signal.SIGINT:
            return
        again = number == signal.SIGINT and self.number is not None
        if again or not self.holding:
            self._end(number)
        if self.number is None:
            self.number = number

    def _end(self, number: int) -> None:
        # what is saved on the way out is not cut off
        self.number, self.holding, self.ending = number, True, True
        raise KeyboardInterrupt if number == signal.SIGINT else ToldToEnd(number)


#: signals are for the whole process, and so is this
REQUEST = EndRequest()
