"""View encoder: a posterior over views by one pass over a particle, and the poses that follow from it exactly."""
