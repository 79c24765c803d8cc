"""Crash images: a disk that notes what is written, what a power cut may leave of it, and whether that recovers."""
