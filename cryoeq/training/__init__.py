"""Training of networks: the pose autoencoder, and pose encoders on synthetic projections."""
