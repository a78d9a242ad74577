"""One training run, from its specification to its checkpoints."""
