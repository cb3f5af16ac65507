"""Ctrl-C and SIGTERM: what they end, and how soon."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

_PATIENCE: Final = 0.5  # seconds until a Ctrl-C that ended nothing is raised once more


@contextmanager
def interrupted_for_certain() -> Iterator[None]:
    """Raise Ctrl-C's KeyboardInterrupt within the context until one is being handled.

    Python drops those that arrive in a hook of fork, a finalizer or a callback, of which the start of Ray has many; one
    in the hooks of logging would also leave its lock taken, so that the next thread that logs waits for ever.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    main, (reads, writes), insists = threading.get_ident(), os.pipe(), False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal insists
        again, insists = insists, False
        os.write(writes, b"1")
        if (again and _is_handled(sys.exception())) or (frame and frame.f_globals.get("__name__") == "logging"):
            return
        raise KeyboardInterrupt

    def insist() -> None:
        nonlocal insists
        os.read(reads, 1)
        while not over.wait(_PATIENCE):
            insists = True
            signal.pthread_kill(main, signal.SIGINT)

    over, thread = threading.Event(), threading.Thread(target=insist, daemon=True)
    thread.start()
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        over.set()
        os.write(writes, b"1")
        thread.join()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(reads)
        os.close(writes)


def _is_handled(error: BaseException | None) -> bool:
    """Return whether a KeyboardInterrupt led to what is being handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process itself within the context, where nothing is to be put away yet.

    Python would notice it only when the library that is being imported has been read from disk.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Make SIGTERM, which schedulers and clouds send before they kill, do what Ctrl-C does at that moment."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Not by a SIGINT: jobs of Ray's have that blocked, and those that a shell put into the background ignore it.
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
