"""The sampled route: draws of the kernel in law, with no network."""
