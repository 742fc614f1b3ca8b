"""The drivers: one technology, one file. Foreign exceptions are mapped here, at their border."""
