"""What every kind of store has in common: a Zarr group that a kill leaves whole, and that tells damage."""
