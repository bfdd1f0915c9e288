"""Weights in and out: safetensors, released folders, names of their tensors, tokenizers, inflation."""
