"""Training by SGD, drawn without building a network."""
