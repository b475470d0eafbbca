"""Faults injected on purpose: `make faults` tries them in numbers and writes the table of docs/reliability.md;
tests/test_faults.py is its short form."""
