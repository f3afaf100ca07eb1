"""What saves time or memory and changes no result; a run works without it."""
