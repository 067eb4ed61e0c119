"""Kernels of real networks in training."""
