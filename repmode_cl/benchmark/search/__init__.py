"""Search for values of the strategies' keys, with the same number of trials for each, on separate images."""

from repmode_cl.benchmark.search.run import SearchResult, run_search

__all__ = ["SearchResult", "run_search"]
