"""Replays recorded runs of the field's own samplers: python -m tests.solver_vectors DIR

DIR holds testbed.npz and one npz a family, as written by official codes in float64 with the exact
denoiser of the test-bed in the place of a network. `replay` has what the families share; each other
module knows one upstream's options and says which of our solvers, grids and drivers they mean.
"""
