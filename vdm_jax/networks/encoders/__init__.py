"""Encoders of text and pictures whose features networks are conditioned on: CLIP and T5."""
