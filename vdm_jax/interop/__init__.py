"""Weights in and out: parameter trees as safetensors files, folders of diffusers and transformers, differences."""
