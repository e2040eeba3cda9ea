"""Page of a prediction's preview."""
