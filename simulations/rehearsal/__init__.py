"""A deployment on loopback whose processes are killed one after another."""
