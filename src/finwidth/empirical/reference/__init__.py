"""Ground truths: plain and slow."""
