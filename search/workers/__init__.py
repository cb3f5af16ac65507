"""Who trains. With jobs, the one room with ray.

assignment  what a worker is given
training    one run after another on a warm model, without Ray
trainable   Tune's view of that: one process, or a gang that trains a trial together
tune        searcher, scheduler and the Tuner, and the bridge between Tune and a source of runs
cluster     joining Ray, its token, and for how many trials it has room
scoring     the precision measured before the trials, and the scores on whole splits after them
"""
