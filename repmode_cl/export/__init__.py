"""Export of a structure's fused network to other programs, each file compared with the model before it is kept."""
