"""The parts of ``benchmarks/speed.py``: one module a section, beside what they share."""
