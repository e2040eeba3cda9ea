"""Files, locks, memory, progress and processes: what every part may use."""
