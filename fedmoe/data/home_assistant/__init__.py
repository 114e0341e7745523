"""Spoken smart-home commands, generated offline."""
