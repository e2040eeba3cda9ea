"""The commands: thin layers over the Python API. They parse, call and print.

Nothing here imports torch, numpy or avalanche before a command runs, so that help answers at once.
"""

__all__: list[str] = []
