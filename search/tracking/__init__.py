"""The published copy of a study, in MLflow: the one room that imports it.

schema     tags and metrics <-> dataclasses; the tags' names, the table of facts; what strangers wrote is checked
client     MLflow's client: opening it, and its errors
experiment the experiment of a study: found, created, removed
runs       its runs: listed and written
artifacts  the files of a run: their hashes, and the store that keeps them
moved      where the artifacts are after their home was moved
writer     MlflowTracker, which writes a study
reader     reads studies and trials, downloads adapters
note       the Markdown of a study's pages
views      the saved views of its runs: tables and charts that MLflow's page lists by name
server     `petl-search ui`
tracker    the protocol of what a study is published to
entries    what is published, one class a kind
publisher  decides what is published, and when
outbox     the journal of what waits, and the thread that delivers it
"""

import os

# mlflow reads these when it is imported.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # it would be drawn into tables and logs
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # two lines for every run that ends
