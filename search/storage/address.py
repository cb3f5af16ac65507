"""The address of a store: which forms it may have, where its password comes from, and how others see the address.

An address may name variables of the environment: `postgresql://petl:${PETL_PASSWORD}@host/db`. A password
never leaves the process: `without_password` gives the form to store, `redacted` the form to print. (SQLAlchemy's
`URL.render_as_string` hides neither a token in the user's place nor a password in the query, and reads addresses
only, not the messages that quote them.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from petl.errors import UserError

POSTGRESQL: Final = "postgresql+psycopg"
_FILES: Final = ("sqlite", "file")  # a path follows, in which an @ is part of a folder's name
REFERENCE: Final = re.compile(r"\$\{(\w+)\}")
_REFERENCES: Final = re.compile(r"(\$\{\w+\})+")
_USER: Final = re.compile(r"([A-Za-z][\w+.-]*)://(\S*)@")  # to the last @: a password may have one by mistake
_SECRET: Final = re.compile(
    r"""(?i)\b([\w.-]*?(?:password|passwd|pwd|passphrase|secret|token|sig|signature|credentials?|(?:access|account|api|secret|private|encryption)[_-]?key))"""
    r"""=('[^']*'|"[^"]*"|[^\s&'"]*)"""
)


class AddressError(UserError, ValueError):
    """The address of a store is malformed, or names a variable that the environment does not have."""


def redacted(text: object) -> str:
    """Return a text for people to read, such as an address or an exception, without the passwords in it."""
    return _SECRET.sub(_redacted_field, _USER.sub(_redacted_user, str(text)))


def one_line(error: object) -> str:
    """Return the text of an error, or of any other thing, on one line and without passwords; "" for an empty text."""
    return redacted(" ".join(str(error).split()))


def require_no_password(overrides: Iterable[str]) -> None:
    """Raise AddressError for a password on the command line, which others on the machine see, and Ray stores."""
    for override in overrides:
        if redacted(override) != override:
            raise AddressError(
                "a password on the command line is seen by everybody on this machine; write ${NAME} for it, which is "
                f"of the environment, or leave it to the study file. Received --set {redacted(override)}"
            )


def without_password(address: str) -> str:
    """Return an address in the form that may be stored: its password is left out unless a ${NAME} stands for it.

    The user of an HTTP server is left out too, since it may be a token.
    """
    match = _USER.match(address)
    if match and match[1] not in _FILES:
        user, _, password = match[2].partition(":")
        public = f"{user}:{password}@" if _REFERENCES.fullmatch(password) else "" if _is_http(match[1]) else f"{user}@"
        address = f"{match[1]}://{public}{address[match.end() :]}"
    base, mark, query = address.partition("?")
    fields = [field for field in query.split("&") if _is_public(field)]
    return base + (mark + "&".join(fields) if fields else "")


def expand_env(address: str) -> str:
    """Return the address with its references replaced, quoted where they stand for a user or a password.

    Raises AddressError for a variable that is not set, and for a user or password whose end cannot be determined.
    """
    end = address.rfind("@")

    def value(reference: re.Match[str]) -> str:
        if (text := os.environ.get(reference[1])) is None:
            raise AddressError(
                f"{_shown(address)} names the environment variable {reference[1]}, which is not set; export it first"
            )
        return quote(text, safe="") if 0 < reference.start() < end or "?" in address[: reference.start()] else text

    address = REFERENCE.sub(value, address)
    scheme, separator, rest = address.partition("://")
    if separator and scheme not in _FILES:
        user, at, _ = rest.rpartition("@")
        if at and re.search(r"[\s/?#@]|:.*:", user):
            raise AddressError(
                "in the user and password of an address the characters @ : / ? # and spaces are written "
                f"%40 %3A %2F %3F %23 %20; received {_shown(address)}"
            )
        try:
            urlsplit(address).port  # noqa: B018 (reading it checks it)
        except ValueError:
            raise AddressError(f"the port of an address is a number; received {_shown(address)}") from None
    return f"{POSTGRESQL}://{rest}" if scheme == "postgresql" else address


def database(address: str) -> str:
    """Return the address of a database of records, ready to be opened. Raises AddressError for any other kind."""
    expanded = expand_env(address)
    if re.fullmatch(r"sqlite:///[^?]+(\?.*)?", expanded) and ":memory:" not in expanded:
        return expanded
    if expanded.startswith(f"{POSTGRESQL}://"):
        return expanded
    raise AddressError(
        f"a study's database is sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; received {_shown(address)}"
    )


def sqlite_file(address: str) -> Path | None:
    """Return the file of an sqlite store, None for any other kind."""
    match = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", address)
    return Path(match[1]) if match else None


def restore_password(stored: str, *candidates: str | None) -> str:
    """Return the first candidate that is the stored address with a password, else the stored address itself."""
    return next((address for address in candidates if address and without_password(address) == stored), stored)


def _shown(address: str) -> str:
    return redacted("".join(address.split()))  # a blank would seem to end the address


def _is_http(scheme: str) -> bool:
    return scheme in ("http", "https")


def _redacted_user(match: re.Match[str]) -> str:
    scheme, (user, colon, password) = match[1], match[2].partition(":")
    if (scheme in _FILES and "://" not in password) or _REFERENCES.fullmatch(password):
        return match[0]
    if not colon:  # a user without a password may be a token
        return f"{scheme}://…@" if _is_http(scheme) else match[0]
    return f"{scheme}://{user}:…@"


def _redacted_field(match: re.Match[str]) -> str:
    return match[0] if _REFERENCES.fullmatch(match[2]) else f"{match[1]}=…"


def _is_public(field: str) -> bool:
    match = _SECRET.fullmatch(field)
    return not match or bool(_REFERENCES.fullmatch(match[2]))
