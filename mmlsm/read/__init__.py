"""Reading: segments in place, memtables, and what combines them; nothing here writes."""
