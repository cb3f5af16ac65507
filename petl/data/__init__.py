"""A task as tokenised rows, and its batches."""
