"""Kernels on disk: computed block by block, by threads or a cluster, and resumed to the same bits."""
