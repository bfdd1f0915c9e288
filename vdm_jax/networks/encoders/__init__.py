"""Encoders of text and pictures whose features networks are conditioned on: CLIP, T5, UMT5 and Llama."""
