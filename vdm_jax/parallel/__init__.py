"""Parallelism: a mesh from a spec, the axis rules on one screen, arrays from host to mesh."""
