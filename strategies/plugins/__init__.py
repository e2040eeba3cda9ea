"""Parts that strategies share besides the training loop: checkpoints, model export, memory, TensorBoard."""
