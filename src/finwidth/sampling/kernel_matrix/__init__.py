"""Draws of the kernel matrix of several inputs."""
