"""A study from its file to its front: the one room that knows all others."""
