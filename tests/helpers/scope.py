"""How much a run takes: `make test` a sample of what is crossed with each other, `make test-all` the whole.

What a run left out is in LEFT_OUT, and tests/conftest.py prints it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

ALL: Final = os.environ.get("PETL_ALL") == "1"
LEFT_OUT: Final[dict[str, str]] = {}


def sampled(what: str, whole: Sequence[T], taken: Callable[[T], bool]) -> list[T]:
    """Return the members of `whole` that this run takes: those that `taken` says, or all of them."""
    sample = [member for member in whole if ALL or taken(member)]
    if len(sample) < len(whole):
        LEFT_OUT[what] = f"{len(sample)} of {len(whole)}"
    return sample
