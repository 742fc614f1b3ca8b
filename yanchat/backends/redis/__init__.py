"""Redis: the registry of the cluster profile."""
