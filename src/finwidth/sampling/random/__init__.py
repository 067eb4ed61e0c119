"""Random numbers: streams that a seed fixes, normals and chi-squares in whole arrays."""
