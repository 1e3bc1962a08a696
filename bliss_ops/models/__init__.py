"""Language models by shape, and the score model on their backbone."""
