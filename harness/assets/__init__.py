"""Files that others made: where they lie, what they hash to."""
