"""Video transformers: one network whose config says which of the published ones it is."""
