"""The video array: value ranges, resizing, frame rates and crops, and reading and writing video files.

`arrays` is pure numpy and JAX; `reading`, `writing` and `grids` touch files and pictures and import PyAV or Pillow
where they are used.
"""
