"""Training: the loop, its state, schedules and metrics; the warm-up and the pretraining job made of them."""
