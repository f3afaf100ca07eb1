"""Pre-training of the embedded backbone on images rendered here; see docs/embedded.md."""
