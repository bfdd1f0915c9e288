"""Stages and cascades: what each makes from what, and generation through all of them."""
