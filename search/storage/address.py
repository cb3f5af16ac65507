"""The address of a store: what it may be, where its password comes from, and what others see of it.

An address may name variables of the environment: `postgresql://petl:${PETL_PASSWORD}@host/db`. A password
never leaves the process: `bare` is what is kept of an address, `masked` what is printed of it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

POSTGRESQL: Final = "postgresql+psycopg"
_PLAIN: Final = ("sqlite", "file")  # a path follows, and an @ in it is one of a folder's name
REFERENCE: Final = re.compile(r"\$\{(\w+)\}")
_REFERENCES: Final = re.compile(r"(\$\{\w+\})+")
_USER: Final = re.compile(r"([A-Za-z][\w+.-]*)://(\S*)@")  # to the last @: a password may have one by mistake
_SECRET: Final = re.compile(
    r"""(?i)\b([\w.-]*?(?:password|passwd|pwd|passphrase|secret|token|sig|signature|credentials?|(?:access|account|api|secret|private|encryption)[_-]?key))"""
    r"""=('[^']*'|"[^"]*"|[^\s&'"]*)"""
)


class AddressError(ValueError):
    """No address of a store, or one that names what the environment does not have."""


def masked(text: object) -> str:
    """Any text for people to read, such as an address or an exception: without the passwords of addresses in it."""
    return _SECRET.sub(_hidden_value, _USER.sub(_hidden_password, str(text)))


def bare(address: str) -> str:
    """The address without its password, unless that is a reference to the environment: what may be kept.

    A server's has no user either, which may be a token.
    """
    found = _USER.match(address)
    if found and found[1] not in _PLAIN:
        user, _, password = found[2].partition(":")
        kept = f"{user}:{password}@" if _REFERENCES.fullmatch(password) else "" if _is_http(found[1]) else f"{user}@"
        address = f"{found[1]}://{kept}{address[found.end() :]}"
    base, mark, query = address.partition("?")
    fields = [field for field in query.split("&") if _is_public(field)]
    return base + (mark + "&".join(fields) if fields else "")


def whole(address: str) -> str:
    """The address with its references replaced, quoted where they are a password or a user.

    Raises AddressError for a variable that is not set, and for what cannot be told apart in an address.
    """
    end = address.rfind("@")

    def value(reference: re.Match[str]) -> str:
        if (found := os.environ.get(reference[1])) is None:
            raise AddressError(
                f"{_named(address)} names the environment variable {reference[1]}, which is not set; export it first"
            )
        return quote(found, safe="") if 0 < reference.start() < end or "?" in address[: reference.start()] else found

    address = REFERENCE.sub(value, address)
    scheme, separator, rest = address.partition("://")
    if separator and scheme not in _PLAIN:
        user, at, _ = rest.rpartition("@")
        if at and re.search(r"[\s/?#@]|:.*:", user):
            raise AddressError(
                "in the user and password of an address the characters @ : / ? # and spaces are written "
                f"%40 %3A %2F %3F %23 %20; received {_named(address)}"
            )
        try:
            urlsplit(address).port  # noqa: B018 (reading it checks it)
        except ValueError:
            raise AddressError(f"the port of an address is a number; received {_named(address)}") from None
    return f"{POSTGRESQL}://{rest}" if scheme == "postgresql" else address


def database(address: str) -> str:
    """The address of a database of records, ready to be opened. Raises AddressError for any other kind."""
    opened = whole(address)
    if re.fullmatch(r"sqlite:///[^?]+(\?.*)?", opened) and ":memory:" not in opened:
        return opened
    if opened.startswith(f"{POSTGRESQL}://"):
        return opened
    raise AddressError(
        f"a study's database is sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; received {_named(address)}"
    )


def sqlite_file(address: str) -> Path | None:
    """The file of an sqlite store; None for every other kind."""
    match = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", address)
    return Path(match[1]) if match else None


def whole_again(kept: str, *candidates: str | None) -> str:
    """The first of the candidates that is `kept` with a password, else `kept` itself."""
    return next((other for other in candidates if other and bare(other) == kept), kept)


def _named(address: str) -> str:
    return masked("".join(address.split()))  # a blank would seem to end it


def _is_http(scheme: str) -> bool:
    return scheme in ("http", "https")


def _hidden_password(found: re.Match[str]) -> str:
    scheme, (user, colon, password) = found[1], found[2].partition(":")
    if (scheme in _PLAIN and "://" not in password) or _REFERENCES.fullmatch(password):
        return found[0]
    if not colon:  # who has only a name may have a token for it
        return f"{scheme}://…@" if _is_http(scheme) else found[0]
    return f"{scheme}://{user}:…@"


def _hidden_value(found: re.Match[str]) -> str:
    return found[0] if _REFERENCES.fullmatch(found[2]) else f"{found[1]}=…"


def _is_public(field: str) -> bool:
    found = _SECRET.fullmatch(field)
    return not found or bool(_REFERENCES.fullmatch(found[2]))
