"""Free space of the file: who owns which page, and when a page may be used again."""
