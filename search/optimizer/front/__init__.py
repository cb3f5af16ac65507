"""The sampler `front`: quality is modelled, cost is counted.

sampler     FrontSampler: the design that is expected to add the most to the front
covering    the first trials, which cover the axis of cost
surrogate   what is expected of every trial at full epochs
gp          the Gaussian process, and the expected gain in hypervolume
encoding    coordinates as points of the unit cube
"""
