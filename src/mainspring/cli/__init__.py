"""The command line: each command calls the same operations as Python and HTTP, on a local or a remote workspace."""
