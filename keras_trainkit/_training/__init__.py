"""What a fit changes: state, the optimizer, which layers train, batches."""
