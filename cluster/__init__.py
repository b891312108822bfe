"""gencls on Ray: memory plans, training tasks, scoring actors. Knows nothing of a command line."""
