"""The model: modules hold parameters, everything else is plain functions and jax transforms."""

from flax import nnx

nnx.set_graph_mode(False)  # modules are ordinary pytrees (flax's "tree mode")
