"""What a network is: descriptions, weight laws, activations, and the checks of inputs."""
