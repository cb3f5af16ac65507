"""Print the paper's percentages of parameters, each with the denominator that it fits: `python -m petl.paper`."""

from petl.paper.percentages import table

print(table())
