"""Trained networks that judge video: where their weights are published, how they are read, what they compute."""
