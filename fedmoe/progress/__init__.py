"""The live table of a run in a terminal."""
