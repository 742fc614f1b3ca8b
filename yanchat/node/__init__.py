"""The work: what a node does with messages, on trio and the ports. No driver, no socket."""
