"""Editing given videos: by the stages of any cascade, one file per method."""
