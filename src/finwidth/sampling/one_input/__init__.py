"""Draws at one input: the norm chain."""
