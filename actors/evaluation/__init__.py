"""The evaluation actor, which judges policies, and the driver's client of it."""
