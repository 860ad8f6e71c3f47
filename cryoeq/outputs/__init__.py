"""What is left on disk for a person: run folders, figures."""
