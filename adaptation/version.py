"""Version of the toolbox, stored in every checkpoint."""

__version__ = "0.2.0"
