"""What threads wrote and read, and whether one order of commits explains each answer."""
