"""What the demo prints: headings, dated events, progress, and the table at the end. To stderr: stdout holds only ``--json``."""

from __future__ import annotations

import sys
from datetime import date
from typing import Any

import click

_COLOURS = {
    "gate_stop": "red",
    "rollback": "red",
    "refused": "red",
    "job_failed": "red",
    "promote": "green",
    "champion": "green",
    "gate_pass": "green",
    "retrain": "yellow",
    "asked": "yellow",
    "needs_human": "yellow",
}


class Progress:
    """Prints events as they happen. On a terminal the current day is shown on a line that is overwritten."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._month = 0

    def heading(self, title: str) -> None:
        self.line(f"\n{click.style(title, bold=True)}")

    def line(self, text: str) -> None:
        if not self._quiet:
            self._clear()
            click.echo(text, err=True)

    def event(self, day: date, what: str, why: str) -> None:
        named = what.replace("_", " ")
        shown = why if len(why) <= 160 else f"{why[:157]}..."
        self.line(f"  {day.isoformat()}  {click.style(f'{named:10}', fg=_COLOURS.get(what))}  {shown}")

    def detail(self, text: str) -> None:
        self.line(f"                          {text[:200]}")

    def day(self, day: date, sent: int) -> None:
        if self._quiet:
            return
        if self._live:
            click.echo(f"\r  {day.isoformat()}  {sent:,} requests", nl=False, err=True)
        elif day.month != self._month:
            click.echo(f"  {day.isoformat()}  ...         {sent:,} requests so far", err=True)
        self._month = day.month

    def summary(self, figures: dict[str, Any]) -> None:
        """The year in numbers."""
        self.heading("Month by month, on the same requests (log-loss, lower is better)")
        self.line("  month       n    loop   frozen  monthly     AUC loop  frozen  monthly")
        for m in figures["monthly"]:
            aucs = "   ".join(
                f"{m[f'auc_{s}']:.3f}" if m[f"auc_{s}"] is not None else "  -  "
                for s in ("loop", "frozen", "monthly")
            )
            self.line(
                f"  {m['month']:5}  {m['n']:6,}   {m['logloss_loop']:.3f}   {m['logloss_frozen']:.3f}    {m['logloss_monthly']:.3f}        {aucs}"
            )
        for name, other in (
            ("the frozen January model", "loop_minus_frozen"),
            ("a plain refit every month", "loop_minus_monthly"),
        ):
            self.line(f"  loop minus {name}: {_difference(figures[other])}")
        self._warn_if_not_better(figures)
        versions = figures["versions"]
        self.line(
            f"  retrains {len(figures['retrains'])} (monthly refits {versions['monthly_refits']}), stopped at the gate {len(figures['gate_stops'])}, "
            f"rolled back {len(figures['rollbacks'])}, drift alerts {len(figures['drift_alerts'])}"
        )
        agree = "agree" if figures["counts_agree"] else "DIFFER"
        self.line(
            f"  requests {figures['requests']:,}, failed {figures['failed_requests']}; sent, log and /metrics {agree}"
        )
        self.line(
            f"  audit chain {'intact' if figures['audit_ok'] else 'BROKEN'} ({figures['events']:,} events); replay {'the same' if figures['replay_same'] else 'DIFFERS'}"
        )
        origin = figures["origin"]
        self.heading("Where one random prediction comes from")
        for name in (
            "prediction_id",
            "model_version",
            "run",
            "code",
            "environment",
            "dataset_version",
            "dataset",
        ):
            self.line(f"  {name.replace('_', ' '):15}  {origin[name]}")
        self.line(f"  {'bytes':15}  read again, digest {'as recorded' if origin['digest_ok'] else 'DIFFERS'}")
        self.line(
            f"\n  {figures['seconds']} s, at most {figures['peak_pss_mb']:,.0f} MB; workspace {figures['workspace']}"
        )

    def _warn_if_not_better(self, figures: dict[str, Any]) -> None:
        """Warns if the loop was not clearly better than the frozen model, or worse than the monthly refit."""
        frozen, monthly = figures["loop_minus_frozen"], figures["loop_minus_monthly"]
        if frozen["high"] is not None and not frozen["high"] < 0:
            self.line(
                click.style(
                    "  The loop did NOT clearly beat the frozen model this time (docs/demo.md says what is known of why).",
                    fg="yellow",
                )
            )
        if monthly["low"] is not None and monthly["low"] > 0:
            self.line(
                click.style(
                    "  The loop did NOT match the monthly refit this time (docs/demo.md says what is known of why).",
                    fg="yellow",
                )
            )

    def _clear(self) -> None:
        if self._live:
            click.echo("\r\x1b[K", nl=False, err=True)


def _difference(d: dict[str, Any]) -> str:
    if d["mean"] is None:
        return "no rows"
    interval = f" [{d['low']:+.4f}, {d['high']:+.4f}]" if d["low"] is not None else ""
    return f"{d['mean']:+.4f}{interval} (n {d['n']:,}; negative: the loop is better)"
