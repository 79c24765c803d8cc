"""Calls on what has ended, interrupts anywhere, and what a process still holds afterwards."""
