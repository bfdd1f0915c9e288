"""Measuring: attention over patterns, kernels, contexts and sizes, run on a device or compiled for a TPU topology."""
