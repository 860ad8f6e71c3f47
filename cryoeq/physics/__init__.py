"""Linear physics of image formation: CTF, shift, projection, and their adjoints."""
