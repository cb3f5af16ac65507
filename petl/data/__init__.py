"""A task as tokenised rows, and its batches.

sources  where a task's rows are
files    how a file of rows is read
rows     the rows of each split: columns, labels, what is cut, drawn and dropped
report   what was understood of the rows, to be shown
values   tokens of users' values, in which special tokens are text
tokens   `TaskData`: the rows as tokens
encoding  texts as a model takes them, for training and for prediction
languages  of a translation, for tokenizers that have codes for them
batches  the order of rows in an epoch
cache    tokenised tables, made once for all processes of a machine
"""
