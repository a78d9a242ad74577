"""From a network to images: protocols, solvers, the sampler."""
