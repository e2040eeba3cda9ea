"""Commands: thin layers over the Python API that parse, call and print.

Nothing here imports torch, numpy or avalanche before a command runs, so that help answers at once:
imports inside the functions are there for that.
"""

__all__: list[str] = []
