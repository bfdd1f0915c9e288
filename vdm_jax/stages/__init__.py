"""Stages and experiments as data, what a stage sees in training, latents, parameters of its network."""
