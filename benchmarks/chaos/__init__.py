"""Faults at random moments under an order-sensitive load, and an audit of what came out.

load.py sends, faults.py breaks, runner.py does both at once and lets things settle, auditor.py
and strangers.py count, report.py writes rows of docs/reliability.md, service.py measures how long a
partition goes unserved. `python -m benchmarks.chaos --help` has the options.
"""
