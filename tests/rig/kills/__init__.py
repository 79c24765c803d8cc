"""Processes that are killed, and file systems that lose power, in the middle of everything."""
