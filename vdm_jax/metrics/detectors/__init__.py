"""Trained networks that judge video or find its motion: where their weights are published, how they are read, what they
compute."""
