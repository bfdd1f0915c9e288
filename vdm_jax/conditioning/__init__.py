"""Conditioning: the pytree of optional inputs, the words of captions, dropping parts for guidance."""
