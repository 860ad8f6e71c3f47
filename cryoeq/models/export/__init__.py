"""Encoders for inference: plain tensors, bfloat16, 8-bit quantization."""
