"""Planning a run before paying for it: what the compiler says of a stage's real program on given chips.

Nothing is ever allocated or run: programs are traced from shapes, compiled ahead of time and read.
"""
