"""A study as a Ray job, from a machine that is no part of the cluster."""
