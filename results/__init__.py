"""From the records and logs of runs to tables and figures (``parse_test_res.py``). No torch."""
