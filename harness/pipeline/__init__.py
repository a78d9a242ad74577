"""Prepare, train, score, verify: one results folder at a time, and what it will cost."""
