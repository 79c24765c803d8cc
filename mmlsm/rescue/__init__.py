"""Salvage: what is undamaged in a damaged file, into a new database, and a list of what is not."""
