"""The TOML file, its values, and the grid of cells."""
