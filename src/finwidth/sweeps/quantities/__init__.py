"""What a cell of a sweep computes."""
