"""The sections of ``benchmarks/gpu.py``, and what runs them within a budget of time."""
