"""Ctrl-C wherever Python drops its exception, and while what it led to is put away."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from search.study.interrupts import interrupted_for_certain

HANG = 20.0  # seconds, after which a Ctrl-C that ended nothing is taken for lost


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10):  # the handler runs between two of Python's steps
        pass


def hang() -> None:
    time.sleep(HANG)
    pytest.fail("the interrupt was lost")


class Gone:
    """Interrupted when it is collected."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def __del__(self) -> None:
        self.action()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_in_a_finalizer_is_raised_again() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_for_certain():  # noqa: PT012
        Gone(interrupt)
        hang()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_in_a_hook_of_fork_leaves_no_lock_taken() -> None:
    """Logging takes its lock before a fork and gives it back behind it, where an exception is dropped."""
    names = {**vars(logging), "kill": os.kill, "pid": os.getpid(), "number": signal.SIGINT}
    give_back = eval("lambda: (kill(pid, number), _lock.release())", names)
    with pytest.raises(KeyboardInterrupt), interrupted_for_certain():  # noqa: PT012
        logging._lock.acquire()  # type: ignore[attr-defined]
        Gone(give_back)
        hang()
    logging_thread = threading.Thread(target=logging.getLogger("a new one").setLevel, args=("INFO",), daemon=True)
    logging_thread.start()
    logging_thread.join(HANG)
    assert not logging_thread.is_alive()


def test_what_is_put_away_is_not_interrupted_by_the_same_one() -> None:
    away = []
    with pytest.raises(KeyboardInterrupt), interrupted_for_certain():  # noqa: PT012
        try:
            interrupt()
            hang()
        finally:
            time.sleep(1.5)  # longer than it takes until one that was lost is raised again
            away.append("all")
    assert away == ["all"]


def test_a_second_one_ends_what_is_put_away() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_for_certain():  # noqa: PT012
        try:
            interrupt()
        finally:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            hang()


def test_the_handler_is_what_it_was_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupted_for_certain():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupted_for_certain():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
