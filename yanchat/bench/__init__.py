"""The load generator: what it sends, what it measures. It knows the nodes by their URLs, as any client does."""
