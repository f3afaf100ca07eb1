"""What all parts share and what needs none of them; only the standard library is imported."""
