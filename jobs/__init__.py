"""The `gencls` command line: a command parses, calls and prints."""
