"""What others published and what we accepted. Data; imports no torch."""
