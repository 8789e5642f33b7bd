"""Ray itself: start it, place actors on nodes, check that a run fits, wait with a bound, copy files between nodes."""
