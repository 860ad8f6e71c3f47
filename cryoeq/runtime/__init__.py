"""Processes, devices, random streams, batching and signals: the machine that a computation runs on."""
