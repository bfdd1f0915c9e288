"""Autoencoders of latent diffusion: video to latents and back, whole, in pieces of time and in tiles."""
