"""Train and evaluate an attached design.

run         `TrainingRun`: one training, which can be saved and continued
rehearsal   one row through a model and back, before any training
engine      DeepSpeed: open it, train, read and write what it partitions
processes   the processes that train together: devices, meeting, sharing
evaluation  scores on a split
metrics     scores of predictions and of text
scripts     how texts are written, and what scores take for their words
probe       a linear classifier on the frozen backbone: a baseline, and a head's start
baselines   what needs no training of the backbone, to compare with
"""
