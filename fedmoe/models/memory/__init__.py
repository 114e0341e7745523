"""Storage of frozen weights, and the memory that training takes."""
