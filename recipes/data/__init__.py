"""Training data: image stores, cached posteriors, and their order, a function of (seed, position)."""
