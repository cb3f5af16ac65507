"""The search service: run a study, and read what it came to. A room imports those below it.

cli, reading    the commands: those that run a study, and those that read what it came to
options         the options that several commands take
study, jobs     a study from its file to its front; a study as a Ray job
workers         who trains, on Ray
results         what people read
config          the study file
tracking        the published copy in MLflow
optimizer       what to train next
storage         records, files of trials, locks
trials          what is known of a trial
"""

import sys

import lazy_loader

import petl

if "load_model" not in getattr(petl, "__all__", ()):
    _FAULT = (
        f"petl-search has a package petl of its own; received {petl.__file__ or next(iter(petl.__path__))}, which is "
        "not it: PyPI's table library petl is there, or was and overwrote ours. The two cannot be installed side by "
        "side: `pip uninstall petl`, then `pip install --force-reinstall --no-deps petl-search`, and give the table "
        "library another environment"
    )
    if sys.argv[0].endswith(("petl-search", "petl-search.exe")) or sys.argv[0] == "-m":  # a command is being imported
        print(f"petl-search: {_FAULT}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(_FAULT)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
