"""Content-addressed bytes: immutable, named by the BLAKE3 of their whole content, verified on every read.

The design and the layout on disk: docs/rooms/objects.md.
"""

from mainspring.storage.objects.bytestore import ByteStore, LocalBytes
from mainspring.storage.objects.opening import open_objects
from mainspring.storage.objects.store import Objects
from mainspring.storage.objects.writer import ObjectWriter

__all__ = ["ByteStore", "LocalBytes", "ObjectWriter", "Objects", "open_objects"]
