"""How frozen weights are stored, and how much memory training takes."""
