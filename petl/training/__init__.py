"""Train and evaluate an attached design."""
