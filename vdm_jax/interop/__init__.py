"""Weights in and out: parameter trees as safetensors files."""
