"""Bytes to objects and back; no I/O, no decisions. docs/format.md is the specification."""
