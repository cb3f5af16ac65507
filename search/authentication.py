"""Ray's token: who has it may join a cluster and send it jobs."""

from __future__ import annotations

import os

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

MODE = "RAY_AUTH_MODE"


def use_token() -> None:
    """Shows this user's token from here on, if there is one, as `ray start` does; $RAY_AUTH_MODE overrules it."""
    if MODE not in os.environ and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        os.environ[MODE] = "token"
        look_again()


def look_again() -> None:
    """Has Ray look at $RAY_AUTH_MODE and the token again, which it does once a process."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
