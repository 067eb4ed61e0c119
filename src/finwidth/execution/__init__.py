"""Who computes tasks, threads of this process or a Dask cluster, for the one process that stores their results."""
