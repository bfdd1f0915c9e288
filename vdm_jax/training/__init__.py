"""Training: state, step, loop, checkpoints and metrics. Effects (files, devices, signals) live here, not in the step."""
