"""Contract suites that we ship: an engine written elsewhere proves itself with them. Nothing imports this package."""
