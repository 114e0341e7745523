"""Making base models: pretraining from text and upcycling of dense models."""
