"""Measurements that stand behind what the documents say; results are kept as data."""
