"""What is known of a trial: values, without files, network or clocks.

record      one trial, its replicates, where it came from; the one codec of a trial's record
records     all trials of a study, durable in an Optuna storage that is handed in
resolved    what a study fixes when it begins: backbone, data, sizes
report      what a worker reports, and who hears of runs
upgrade     names of earlier versions, refused in a user's file and read in a stored one
objectives  scores and costs: directions, what is known before training
pareto      dominance, ranks, hypervolume
front       the front of records
naming      what trials are called
formats     numbers for people
limits      limits on counts, and how far beyond them a design is
quiet       Optuna without its log lines
"""
