"""Pose encoders trained on synthetic projections of a map, and what they propose for particles."""
