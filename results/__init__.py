"""From the logs of runs to tables and figures; the command is ``parse_test_res.py``. No torch."""
