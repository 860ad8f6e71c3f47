"""Trained pose encoders as plain torch layers, in single precision and in 8-bit integers."""
