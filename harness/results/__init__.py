"""From records to conclusions: curves, speedups, verdicts, claims."""
