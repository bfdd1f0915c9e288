"""The blocks of all networks: one residual block, one attention, one feed-forward, temporal layers, codes of positions.

The networks (`unet.py`, `latent_unet.py`, the encoders, the autoencoders) are assemblies of these. What differs
between them is an option of a block; the names of submodules are those of the parameters, which weights depend on.
"""
