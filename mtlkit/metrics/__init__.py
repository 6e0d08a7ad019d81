"""Metrics: what each is and how it is written, and those that NumPy computes. No PyTorch."""
