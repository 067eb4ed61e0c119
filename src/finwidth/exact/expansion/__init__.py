"""The expansion in 1/width: any activation, several inputs, to first order (docs/theory/expansion.md)."""
