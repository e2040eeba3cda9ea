"""Owner fills this in."""
