"""Baselines: models without a network, one file each. No PyTorch takes part in their fits."""
