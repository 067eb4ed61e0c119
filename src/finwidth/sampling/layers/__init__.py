"""Torch layers whose weights are never formed."""
