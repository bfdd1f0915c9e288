"""Released models: a local folder in the layout of diffusers as an experiment with parameters."""
