"""Page of an evaluation on new images."""
