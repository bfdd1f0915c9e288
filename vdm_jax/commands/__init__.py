"""Commands of the `vdm-jax` program, one thin file each."""
