"""What to train next: decisions on records alone, without files, network or processes.

search         Search: what to do with a free worker, and what a report means
steps          the words of that, which replication shares: Start, Resume, Idle, Decision, Source
budget         Budget, and Meter: the time that a study has taken
rungs          rules, which stop trials at rungs or let them wait; the table of them
samplers       Proposer: samplers by name
observations   what Optuna's samplers observe of a study
front          our own sampler: the surrogate of quality, and the expected gain of the front
replication    which finished trials train once more with another seed
true_front     the posterior of who is on the front of true means
importance     which dimensions of a space matter
simulation     searches replayed on made-up or tabulated curves
"""
