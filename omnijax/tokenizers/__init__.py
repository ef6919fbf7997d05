"""Tokenizers: text, image and audio to integer codes and back."""

from flax import nnx

nnx.set_graph_mode(False)  # modules are plain pytrees; see DESIGN section 9.4
