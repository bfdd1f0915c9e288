"""Videos longer than a stage makes at once: plans of segments, scripts, and the driver that samples them."""
