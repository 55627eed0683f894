"""vcot: annotated images in, a vision-language model out that points at what it names."""

__version__ = "0.1.0"
