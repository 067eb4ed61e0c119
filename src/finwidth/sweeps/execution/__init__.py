"""Sweeps on threads and on Dask clusters."""
