"""What to train next. Pure: no files, no network, no ray, no mlflow, no torch."""
