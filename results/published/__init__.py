"""Published figures: the data files of this folder, ours beside them, and the papers' tables."""
