"""Gaussian matrices that are drawn only along the vectors they meet."""
