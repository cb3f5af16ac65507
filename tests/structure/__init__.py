"""What the code's imports and calls say of its structure; `python -m tests.structure --help` prints it."""
