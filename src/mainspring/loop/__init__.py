"""The loop: reads facts, decides by policy, and makes it so. The only room that decides (docs/rooms/loop.md)."""

from mainspring.loop.operations import Loop
from mainspring.loop.rooms import LoopRooms

__all__ = ["Loop", "LoopRooms"]
