"""How to measure: checkpoint in, record out."""
