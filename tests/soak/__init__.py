"""The soak: an hour of everything at once on the local stack while its processes are killed; see docs/soak.md."""
