"""What training does at a fixed kernel: kernel regression, gradient flow, the linearised network."""
