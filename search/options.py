"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated
from unicodedata import normalize

import typer

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A study; `petl-search ls` lists them.", callback=lambda name: normalize("NFC", name)
    ),
]
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...",
        help="Studies; `petl-search ls` lists them.",
        callback=lambda names: [normalize("NFC", name) for name in names],
    ),
]
Uri = Annotated[
    str | None,
    typer.Option(help="MLflow store. Default: $MLFLOW_TRACKING_URI, $PETL_SEARCH_HOME, ./petl-search.", metavar="URI"),
]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the study file; may be repeated.", metavar="KEY=VALUE"),
]

Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: auto for the one that this node is part of, host:port, or local for one of its own. "
        "Default: $RAY_ADDRESS, else local.",
        metavar="ADDRESS",
    ),
]
JobsAddress = Annotated[
    str | None,
    typer.Option(
        help="Dashboard of a Ray cluster. Default: $RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.",
        metavar="URL",
    ),
]
Environment = Annotated[
    list[str] | None,
    typer.Option("--env", help="Set a variable for the job; may be repeated. Never a password.", metavar="KEY=VALUE"),
]
Python = Annotated[str, typer.Option("--python", help="The cluster's interpreter with petl-search.", metavar="PATH")]
Code = Annotated[
    bool, typer.Option("--code", help="Run this machine's petl-search there, with what is installed there.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Print its log until it ends; Ctrl-C leaves it running.")]
