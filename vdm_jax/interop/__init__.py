"""Weights in and out: parameter trees as safetensors files, and how two trees differ."""
