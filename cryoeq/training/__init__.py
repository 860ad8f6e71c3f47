"""Training of neural networks: the pose autoencoder end to end, and encoders on synthetic projections."""
