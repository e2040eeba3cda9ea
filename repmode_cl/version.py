"""The version of the package."""

#: A test compares it with pyproject.toml. Reading installed metadata instead would slow every command.
__version__ = "0.1.0"
