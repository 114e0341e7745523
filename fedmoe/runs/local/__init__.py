"""Clients on this machine: in this process or on a pool of workers."""
