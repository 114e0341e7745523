"""The command line and local simulation: transports, live table, saved runs."""
