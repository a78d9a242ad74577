"""From features to numbers, a file for each metric."""
