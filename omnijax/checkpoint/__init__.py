"""Checkpoints: the training state, the resolved config, fingerprints and the data position."""

from omnijax.checkpoint.arrays import named, unnamed
from omnijax.checkpoint.identity import FORMAT, Identity
from omnijax.checkpoint.reader import load_for_inference, read_arrays, read_identity
from omnijax.checkpoint.writer import Checkpoints
from omnijax.job.saved import steps

__all__ = ["FORMAT", "Checkpoints", "Identity", "load_for_inference", "named", "read_arrays",
           "read_identity", "steps", "unnamed"]
