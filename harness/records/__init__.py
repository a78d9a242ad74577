"""What was measured: schema, provenance, file."""
