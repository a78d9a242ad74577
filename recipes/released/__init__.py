"""The published file formats, read and written; nobody else knows their names."""
