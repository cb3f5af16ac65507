"""The search over curves that are known, on a simulated clock.

replay   the loop over a search and a curve
table    a finished study as a table of curves, and a search replayed on it
"""
