"""Locks, signals, progress: what every command needs of the machine."""
