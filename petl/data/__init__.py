"""A task as tokenised rows, and its batches.

sources  where a task's rows are, and how they are read
tokens   `TaskData`: the rows as tokens
encoding  texts as a model takes them, for training and for prediction
batches  the order of rows in an epoch
cache    tokenised tables, made once for all processes of a machine
"""
