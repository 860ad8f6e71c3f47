"""Neural networks and volume models: pose encoder, pose head, decoders."""
