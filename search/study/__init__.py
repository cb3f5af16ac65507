"""A study from its file to its front: the one room that knows all others.

run           run and resume
draft         a study file from a model and a file of rows
inputs        whether the model and the rows that it names are there
resolve       what a study fixes when it begins
fit           whether its backbone can do its task
plan          what the search works through
warm_start    designs from the fronts of earlier studies
runner        all that happens to a study that is on record
heads         what the heads of all trials start from
final_scores  who sees the test split
places        where the study lies, and its one driver
interrupts    what Ctrl-C and SIGTERM end, and how soon
leftovers     what an earlier study of that name left: refused or deleted
"""
