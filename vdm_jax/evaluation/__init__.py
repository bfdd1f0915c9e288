"""Scores of generated video: each says what it measures, with which detector, and comes with its controls."""
