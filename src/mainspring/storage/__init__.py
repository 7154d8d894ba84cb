"""Storage engines and the layers directly above them: SQL, objects, journal, leases, failpoints."""
