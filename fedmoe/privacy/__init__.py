"""Privacy of clients: clipped vectors, noise on their sum, an account, and masks that hide each."""
