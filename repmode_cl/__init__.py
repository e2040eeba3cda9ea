"""repmode-cl: learn to predict one fluorescent structure after another, and forget none."""
__version__ = "0.1.0"
