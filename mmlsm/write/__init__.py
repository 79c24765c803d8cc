"""Writing: memtables, the log, segments, flushes, merges, and the two threads that do them."""
