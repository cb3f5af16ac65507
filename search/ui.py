"""MLflow's pages on a local store: one process, no job workers, reachable from this machine only."""

from __future__ import annotations

import os
import sys

from search.address import masked, whole
from search.database import is_postgresql, require_database
from search.home import StoreError, artifact_root, require_store, store_uri


def serve(uri: str | None, port: int) -> None:
    """Become `mlflow server` on the store; Ctrl-C ends it.

    Raises StoreError where there is no store, or where it is a server itself.
    """
    uri = whole(store_uri(uri))
    require_store(uri)
    if is_postgresql(uri):
        require_database(uri, "experiments")
    root = artifact_root(uri)
    if root is None:
        raise StoreError(f"{masked(uri)} is a server already: open it in a browser")
    # without the option MLflow 3 opens at its pages for language models
    print(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning", flush=True)
    print("is there in some seconds; Ctrl-C ends it", flush=True)
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--artifacts-destination", str(root)),
    ]
    # ten processes and 2.4 GB with job execution, two and 0.5 GB without
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    store = {"MLFLOW_BACKEND_STORE_URI": uri}  # no argument: everybody on the machine sees those
    os.execve(sys.executable, command, {**os.environ, **quiet, **store})
