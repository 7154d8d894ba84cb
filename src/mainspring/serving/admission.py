"""Slots, a bounded queue and a queue deadline: an overloaded server answers 503 at once instead of slowing down for all (V05).

Only work that leaves the event loop takes a slot. A slot is freed when its thread has really ended, not when the client was answered
504: so a stuck model cannot hold more threads than there are slots, and :meth:`Admission.stuck_s` shows it to the watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mainspring.errors import DeadlineExceeded, Overloaded

T = TypeVar("T")


class Places:
    """``slots`` holders at a time, with at most ``queue`` more waiting, each at most ``queue_deadline_s`` seconds. For one event loop."""

    def __init__(self, *, slots: int, queue: int, queue_deadline_s: float) -> None:
        self._free = slots
        self._queue = queue
        self._queue_deadline_s = queue_deadline_s
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many are waiting for a slot."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the next one would be refused."""
        return not self._free and len(self._waiting) >= self._queue

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a slot. Raises :class:`Overloaded` if none becomes free in time."""
        await self._take_slot()
        try:
            yield
        finally:
            self._pass_slot_on()

    async def _take_slot(self) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= self._queue:
            raise Overloaded("all slots and the queue are taken", next_step="Try again after a second.")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait_for(turn, self._queue_deadline_s)
        except TimeoutError:
            self._leave_queue(turn)
            raise Overloaded("no slot became free in time", next_step="Try again after a second.") from None
        except BaseException:
            self._leave_queue(turn)
            raise

    def _leave_queue(self, turn: asyncio.Future[None]) -> None:
        with contextlib.suppress(ValueError):
            self._waiting.remove(turn)
        if turn.done() and not turn.cancelled():  # the slot was handed over at the moment the wait ended
            self._pass_slot_on()

    def _pass_slot_on(self) -> None:
        # Directly to the next in the queue: freeing it first would let a new request overtake.
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Admission(Places):
    """Runs work in threads, ``slots`` at a time."""

    def __init__(self, *, slots: int, queue: int, queue_deadline_s: float, deadline_s: float) -> None:
        super().__init__(slots=slots, queue=queue, queue_deadline_s=queue_deadline_s)
        self._deadline_s = deadline_s
        self._running: dict[int, float] = {}
        self._ticket = 0
        self._pool = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="predict")

    def stuck_s(self) -> float:
        """Seconds that the oldest work has been running; 0 if there is none."""
        return max((time.monotonic() - start for start in self._running.values()), default=0.0)

    async def run(self, work: Callable[[], T]) -> T:
        """``work()`` in a thread. Raises :class:`Overloaded` if no slot is free in time, :class:`DeadlineExceeded` if the work takes too long."""
        await self._take_slot()
        loop = asyncio.get_running_loop()
        self._ticket += 1
        ticket = self._ticket
        self._running[ticket] = time.monotonic()
        try:
            future = loop.run_in_executor(self._pool, work)
        except BaseException:
            self._free_slot(ticket)
            raise
        future.add_done_callback(lambda _: self._free_slot(ticket))
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._deadline_s)
        except TimeoutError:
            future.add_done_callback(_read_exception)
            raise DeadlineExceeded(
                f"the prediction took longer than {self._deadline_s:g} s", next_step="Send fewer rows."
            ) from None

    def close(self) -> None:
        """Cancel what waits for a thread; running work is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _free_slot(self, ticket: int) -> None:
        self._running.pop(ticket, None)
        self._pass_slot_on()


def _read_exception(future: asyncio.Future[T]) -> None:
    if not future.cancelled():
        future.exception()  # read, so that asyncio does not log it as never retrieved
