"""What a fit uses and changes: state, optimizers, trainable layers, batches."""
