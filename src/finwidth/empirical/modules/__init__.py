"""Between `MLP` and torch modules, both ways."""
