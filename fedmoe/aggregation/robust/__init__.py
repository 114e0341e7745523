"""Rules that see all updates of a round at once, and withstand a minority that lies."""
