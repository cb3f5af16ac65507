"""Train and evaluate an attached design.

run         `TrainingRun`: one training, which can be saved and continued
engine      DeepSpeed, and the processes that train together
evaluation  scores on a split
metrics     scores of predictions and of text
baselines   what needs no training of the backbone, to compare with
"""
