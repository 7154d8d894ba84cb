"""Frozen records: what the rooms hand to one another, store and send. One module per room.

Times are timezone-aware datetimes in UTC (RFC 3339 in JSON). Ids are opaque, time-ordered strings (UUIDv7).
Digests are lower-case hex BLAKE3 of 64 characters. Numbers carry their unit in the name (``_ms``, ``_us``, ``_bytes``).
"""
