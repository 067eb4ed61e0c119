"""The quantities that a sweep can compute, one class each."""
