"""From particle files to batches that the model sees."""
