"""The version of the package."""

#: The same as in pyproject.toml, which a test compares; reading installed metadata would slow every command.
__version__ = "0.1.0"
