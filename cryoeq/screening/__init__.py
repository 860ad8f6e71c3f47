"""Screening of views and particles: angular gaps by local homology, learnt scores on the sheaf of views."""
