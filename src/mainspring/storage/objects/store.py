"""Objects: what every room reads and writes. Implemented once, above any :class:`ByteStore`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from mainspring.records.objects import FsckReport, GcReport
from mainspring.storage.objects.stored import StoredObjects
from mainspring.storage.objects.writer import ObjectWriter


class Objects(StoredObjects):
    """A content-addressed store. Safe to use from many threads and processes at once.

    Guarantees: an object never changes; reads verify every byte against its digest and raise :class:`Corrupt` otherwise (putting
    the same bytes again repairs it); what :meth:`writing` has finished is durable; a crash leaves only unreferenced bytes.
    """

    @contextlib.contextmanager
    def writing(self) -> Iterator[ObjectWriter]:
        """A writer that delays gc until the block ends: open it around the transaction that refers to its objects.

        A clean exit flushes; after an exception nothing of it is visible. A writer belongs to one thread.
        """
        with self.pins.shared() as check:
            self.refresh()  # after the pin is taken: blobs that gc removed before must not count as stored
            writer = ObjectWriter(self, check=check)
            self._writers.add(writer)
            try:
                yield writer
                writer.flush()
                check()
            except BaseException:
                writer.abandon()
                raise
            finally:
                self._writers.discard(writer)
                writer.close()

    def fsck(
        self, roots: Iterable[str] = (), *, read_data: bool = False, subset: tuple[int, int] = (1, 1)
    ) -> FsckReport:
        """Check the store. ``roots`` (and what the database refers to) must resolve, trees included.

        ``read_data`` reads every pack and checks every blob; ``subset=(n, m)`` only the n-th of m parts of them.
        """
        from mainspring.storage.objects.fsck import check

        with self.pins.shared():
            return check(self, self._all_roots(roots), read_data=read_data, subset=subset)

    def repair(self, *, wait_s: float = 10.0) -> list[str]:
        """Rebuild damaged index files from the tables of the packs, and damaged frames of packs around their intact blobs.

        Returns the keys that were damaged. Exclusive, like :meth:`gc`.
        """
        from mainspring.storage.objects.repair import repair

        with self.pins.exclusive(wait_s=wait_s) as check:
            return repair(self, check=check)

    def gc(
        self,
        roots: Iterable[str] = (),
        *,
        dry_run: bool = False,
        grace_s: float = 3600.0,
        min_live: float = 0.6,
        wait_s: float = 10.0,
        even_if_younger: bool = False,
    ) -> GcReport:
        """Remove objects that neither ``roots`` nor the database reach; rewrite packs of which less than ``min_live`` is used.

        Exclusive: waits ``wait_s`` seconds for writers, then raises :class:`Unavailable`. Packs younger than
        ``grace_s`` stay. References are read while no writer is active, so that none can be missed. ``min_live=1``
        removes every unreferenced byte (erasure). Refused with :class:`Conflict` if the store belongs to a database and this is not
        opened with it, or if packs are older than the database, which then may lack references to them (``even_if_younger`` allows that).
        """
        from mainspring.storage.objects.gc import collect
        from mainspring.storage.objects.owner import check_age

        hold = self.pins.shared() if dry_run else self.pins.exclusive(wait_s=wait_s)
        with hold as check, contextlib.nullcontext() if dry_run else self._freeing():
            packs = (
                ()
                if even_if_younger
                else (key.removeprefix("packs/") for key, _ in self.store.list("packs/"))
            )
            check_age(self._owner, packs, bound=self._references is not None)
            return collect(
                self, self._all_roots(roots), dry_run=dry_run, grace_s=grace_s, min_live=min_live, check=check
            )

    def _all_roots(self, roots: Iterable[str]) -> set[str]:
        digests = set(roots)
        if self._references is not None:
            digests.update(self._references())
        return digests
