"""Training: state, step, loop, checkpoints, metrics. Effects (files, devices, signals) live here, not in the step."""
