"""The container commands: ``python -m jobs.<stage>``."""
