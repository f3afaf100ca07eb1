"""Commands that look into a finished run and export what it learned: ``python -m tools.<name>``."""
