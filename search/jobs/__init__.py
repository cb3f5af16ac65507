"""A study as a Ray job, from a machine that is no part of the cluster.

client      Submission, Cluster: submit a study, follow its job, say how it ended
entrypoint  what the job does on the cluster's head before the study runs
"""
