"""What several packages need, and what needs none of them: no module of ours, no torch."""
