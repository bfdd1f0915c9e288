"""Measures of videos and of sets of videos: detectors with pinned weights, distances, protocols. Nothing of runs."""
