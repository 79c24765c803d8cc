"""Damaged files: where everything stands in one, what is done to it, and whether the answers will do."""
