"""One self-contained HTML page about all runs below an output folder."""
