"""Secure aggregation: the server learns the sum of clients' vectors, and none of the vectors."""
