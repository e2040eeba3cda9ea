"""From files to training data: manifest, readers, splits, preprocessing and cache, patches, simulated cells.

Nothing is imported here, because most commands need only a part of it.
"""
