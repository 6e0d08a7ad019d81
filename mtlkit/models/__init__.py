"""Architectures: one file each, over shared layers. Never imports balancers or data sets."""
