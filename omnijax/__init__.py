"""omnijax: one Transformer that natively reads and writes text, images and speech."""

__version__ = "0.1.0"
