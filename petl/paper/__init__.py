"""What He et al. (ICLR 2022) print.

results.json  scores, percentages of parameters, conclusions
results       the same as values
percentages   the percentages recomputed; `python -m petl.paper` prints them
"""
