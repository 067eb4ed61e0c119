"""What is kept of draws in bounded memory: means with their errors, and quantiles."""
