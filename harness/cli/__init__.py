"""The command line: the composition root, which may import everything; nothing imports it."""
