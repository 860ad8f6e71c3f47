"""Processes, devices, random numbers, batching and signals: how a run is carried out, not what it computes."""
