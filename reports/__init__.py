"""Records in, pages out. Computes nothing that a record does not hold."""
