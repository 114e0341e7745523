"""Differential privacy for clients: one clipped vector each, noise on the sum, a budget that ends."""
