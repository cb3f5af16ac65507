"""A study from its file to its front: the one room that knows all others.

run           run and resume
resolve       what a study fixes when it begins
plan          what the search works through
warm_start    designs from the fronts of earlier studies
runner        all that happens to a study that is on record
final_scores  who sees the test split
places        the one driver, what interrupts it, what is refused and what is deleted
"""
