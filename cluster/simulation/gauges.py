"""What the instruments on a simulated board show: utilisation, power, temperature.

Fed with every engine step, in the engine's own time. Power follows how hard a step drives the
tensor cores (MFU) and the memory (MBU), both as shares of the data sheet:

    P = idle + (TDP − idle)·min(1, max(0.87·MBU^0.6, 0.15 + 1.9·MFU))

fitted on splitwise-sim's A100 measurements (median error 4 %). Temperature is first order, a rule
of thumb: it nears what the present power would settle at, with a time constant of 45 s.
"""

from __future__ import annotations

import math

from cluster.simulation.hardware import GpuCard

HEAT_TIME_S = 45.0


def power_w(gpu: GpuCard, mfu: float, mbu: float) -> float:
    """Return what one board draws during a step."""
    drive = min(1.0, max(0.87 * math.pow(mbu, 0.6), 0.15 + 1.9 * mfu))
    return gpu.idle_w + (gpu.tdp_w - gpu.idle_w) * drive


class Gauges:
    """Integrates the steps of equal boards that work in step; values are per board."""

    def __init__(self, gpu: GpuCard, now: float) -> None:
        self._gpu = gpu
        self._at = now
        self._read_at = now
        self._busy_s = 0.0
        self._joules = 0.0
        self.utilization = 0.0
        """Share of the interval between the last two reads with a step running."""
        self.power_w = gpu.idle_w
        """Mean over the same interval."""
        self.temperature_c = gpu.idle_c

    def record(self, start: float, duration_s: float, *, compute_s: float, memory_s: float) -> None:
        """Take in one step; it would take `compute_s` and `memory_s` at the data sheet's peaks."""
        self._spend(start - self._at, self._gpu.idle_w)
        if duration_s > 0:
            self._spend(duration_s, power_w(self._gpu, compute_s / duration_s, memory_s / duration_s))
            self._busy_s += duration_s

    def read(self, now: float) -> None:
        """Bring the values up to date; a step that is still running counts whole."""
        self._spend(now - self._at, self._gpu.idle_w)
        interval_s = self._at - self._read_at
        if interval_s > 0:
            self.utilization = min(1.0, self._busy_s / interval_s)
            self.power_w = self._joules / interval_s
            self._read_at = self._at
            self._busy_s = self._joules = 0.0

    def _spend(self, span_s: float, watts: float) -> None:
        if span_s <= 0:
            return
        gpu = self._gpu
        settled_c = gpu.idle_c + (gpu.load_c - gpu.idle_c) * (watts - gpu.idle_w) / (gpu.tdp_w - gpu.idle_w)
        self.temperature_c += (settled_c - self.temperature_c) * -math.expm1(-span_s / HEAT_TIME_S)
        self._joules += watts * span_s
        self._at += span_s
