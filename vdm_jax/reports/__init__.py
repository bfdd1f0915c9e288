"""The page about runs: curves, scores, samples as one HTML file."""
