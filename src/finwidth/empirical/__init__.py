"""The empirical route: real networks and their own parameters."""
