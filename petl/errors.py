"""The base of every error that is the user's to mend, and of every warning that is meant for the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """An error that a user can mend; its message says the rule, the value received and what to do.

    A command prints the message in one line and ends with `exit_code`. Every other exception is a fault of the
    program and keeps its traceback. A rule that pydantic checks is a ValueError as well: of those pydantic collects
    all faults of a file.
    """

    exit_code = 2


class UserNotice(UserWarning):
    """A warning that a command prints in one line, without the line of code that it comes from."""


@contextmanager
def library(rule: str, kind: type[UserError]) -> Iterator[None]:
    """Turn whatever a library raises within the context into an error that a user can mend: the rule, and its reason.

    For calls on what a user gave, of which the exceptions have nothing in common; errors of users pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise kind(f"{rule}: {reason} ({type(error).__name__})") from error


def faults(
    error: ValidationError,
    section: str = "",
    redact: Callable[[str], str] = str,
    keys: Callable[[Sequence[str | int]], Iterable[str]] = lambda place: (),
) -> list[str]:
    """Return every fault that pydantic found in `section`, each as its place, the rule, and the value received.

    A rule of our own says the value itself where it is only a part of what was checked. `redact` is applied to values.
    `keys` gives those that there are at a place, for one that is not.
    """
    texts = []
    for fault in error.errors():
        where = ".".join(map(str, (section, *fault["loc"]) if section else fault["loc"]))
        rule = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            rule = "is required; received nothing"
        elif fault["type"] == "extra_forbidden":
            rule = f"no such key{_instead(str(fault['loc'][-1]), [*keys(fault['loc'][:-1])])}"
        received = "" if "received" in rule else redact(f"; received {fault['input']!r}")
        named = not where or rule.startswith(f"{where}.")  # by the rule itself
        texts.append(f"{rule}{received}" if named else f"{where}: {rule}{received}")
    return texts


def _instead(key: str, keys: Sequence[str]) -> str:
    """Return what may be meant by a key that does not exist: one that looks like it, else all that do."""
    if alike := get_close_matches(key, keys, 1):
        return f", perhaps {alike[0]}"
    return f"; there are {', '.join(keys)}" if keys else ""
