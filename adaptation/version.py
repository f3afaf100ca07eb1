"""Version of the toolbox, which every checkpoint and record stores."""

__version__ = "0.5.0"
