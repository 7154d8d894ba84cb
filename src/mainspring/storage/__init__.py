"""Engines and what stands directly on them: SQL, objects, journal, leases, failpoints."""
