"""The kernel of a torch module, and its first change."""
