"""Amortized E-step: an encoder proposes the views of each particle that an iteration tries."""
