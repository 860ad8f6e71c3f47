"""How the learnt parts learn."""
