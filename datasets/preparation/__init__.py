"""The parts of ``python -m datasets.prepare``.

Packages beyond the standard library are imported inside the functions, so that ``--help`` answers
at once.
"""
