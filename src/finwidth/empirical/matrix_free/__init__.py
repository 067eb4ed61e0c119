"""The kernel as an operator: its products with vectors, without forming it."""
