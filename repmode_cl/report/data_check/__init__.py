"""The page of a manifest's check."""
