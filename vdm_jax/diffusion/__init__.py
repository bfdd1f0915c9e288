"""Diffusion without networks: schedules, predictions, losses, samplers and denoiser transformations.

A schedule maps time to log-SNR, a `Process` adds what the network predicts and how its loss is weighted, a
sampler walks down a grid of log-SNR levels. A denoiser is any function `denoise(z, logsnr) -> x_hat`;
guidance, thresholding and the like are functions from denoisers to denoisers. Config types here are plain
data.
"""
