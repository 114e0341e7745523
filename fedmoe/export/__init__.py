"""A finished run's adapter, for other programs and for answers."""
