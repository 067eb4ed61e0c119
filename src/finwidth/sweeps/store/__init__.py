"""How the cells of a sweep are kept, read, checked and merged."""
