"""The sampler `front`: quality is modelled, cost is counted."""
