"""Calls of the operating system that fail, and whether promises 7 and 8 hold then."""
