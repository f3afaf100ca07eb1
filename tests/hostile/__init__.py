"""Hostile input for everything that the toolbox reads from outside.

``readers`` is the table: of each reader, how a valid file is made by real code, how it is changed,
and how it is read and used. ``judging`` has the one check for all of them; ``python -m
tests.hostile`` runs thousands of inputs per reader and ``test_hostile.py`` some dozens.
"""
