"""Learnt parts: encoder, pose head, volume decoders."""
