"""Run directories: configs, checkpoints, records, locks, exported weights; reading a run needs no trainer."""
