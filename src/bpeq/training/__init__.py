"""Training: compiled loops, optimizers, batches shared by devices, evaluation."""
