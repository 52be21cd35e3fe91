"""The onboard map: one SQLite file and an exact binary index over its codes."""
