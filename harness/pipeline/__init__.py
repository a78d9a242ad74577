"""prepare, train, score, compare: one output folder at a time, and what it will cost."""
