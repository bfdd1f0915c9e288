"""What a network is conditioned on: the pytree of inputs, the words of captions, dropping text."""
