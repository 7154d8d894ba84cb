"""Puts the chart drawer (vega-embed, from vl_convert) into the wheel. It is never committed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ChartBundle(BuildHookInterface):  # type: ignore[misc,type-arg]  # hatchling is there at build time only
    """Writes ``server/static/vega-embed.js`` before a wheel is packed; an editable install makes it when a server starts."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        target = Path(self.root) / "src/mainspring/server/static/vega-embed.js"
        if version == "editable":
            return
        if not target.exists():
            if importlib.util.find_spec("vl_convert") is None:
                sys.stderr.write(
                    "mainspring: vl_convert is not here, so this wheel draws no charts; pages show tables\n"
                )
                return
            import vl_convert

            target.write_text(vl_convert.javascript_bundle(), encoding="utf-8")
        build_data["force_include"][str(target)] = "mainspring/server/static/vega-embed.js"
