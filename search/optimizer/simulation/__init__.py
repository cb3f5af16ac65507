"""The search over curves that are known, on a simulated clock."""
