"""The exact route: moments by transfer over path partitions, with no randomness."""
