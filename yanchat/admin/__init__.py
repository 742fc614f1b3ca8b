"""Admin HTTP of a node: what its operators ask and order, over a Unix socket in its directory."""
