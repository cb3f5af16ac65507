"""The paper's own percentages and results."""
