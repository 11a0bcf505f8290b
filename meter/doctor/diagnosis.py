"""All findings together: what can be metered, and the one step that matters most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meter.doctor.cpu import cpu
from meter.doctor.finding import Finding, Level
from meter.doctor.gpus import gpus
from meter.doctor.machine import Machine
from meter.doctor.vllm import vllm
from meter.model import Fidelity, Quality, worst

__all__ = ["Diagnosis", "Finding", "Level", "examine"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``findings``: GPUs first, then vLLM and the plugin, then the CPU: by what matters most."""

    findings: tuple[Finding, ...]

    @property
    def boundary(self) -> str | None:
        """What an engine here would be metered on: ``gpu``, ``host``, or nothing."""
        of_gpus = self._of("gpu")
        if any(finding.quality is not None for finding in of_gpus):
            return "gpu"
        unreadable = any(finding.level is Level.NO for finding in of_gpus)
        return None if unreadable else "host"

    @property
    def quality(self) -> Quality | None:
        """The worst of what an engine would be metered on."""
        if self.boundary is None:
            return None
        used = self._of("gpu") if self.boundary == "gpu" else self._of("cpu")
        return worst([finding.quality for finding in used if finding.quality is not None])

    @property
    def fidelity(self) -> Fidelity | None:
        """How requests would be seen: step by step, or not at all."""
        seen = [*self._of("vllm"), *self._of("plugin")]
        return None if any(f.level is Level.NO for f in seen) else Fidelity.STEP

    @property
    def next_step(self) -> str | None:
        """The step to the next better: of what cannot be metered first, then of what can less."""
        for level in (Level.NO, Level.LESS):
            for finding in self.findings:
                if finding.level is level and finding.step is not None:
                    return finding.step
        return None

    @property
    def exit_code(self) -> int:
        """0: nothing here to better; 1: it works, and could be better; 2: no energy can be had."""
        if self.quality is None:
            return 2
        engine = [f for f in self.findings if self.boundary != "gpu" or f.area != "cpu"]
        return int(any(f.level is not Level.GOOD and f.step is not None for f in engine))

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs. Keys are only ever added."""
        return {
            "boundary": self.boundary,
            "quality": self.quality,
            "fidelity": self.fidelity,
            "next_step": self.next_step,
            "exit_code": self.exit_code,
            "findings": [
                {
                    "area": finding.area,
                    "level": finding.level,
                    "text": finding.text,
                    "step": finding.step,
                    "quality": finding.quality,
                }
                for finding in self.findings
            ],
        }

    def _of(self, area: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.area.split()[0] == area]


def examine(machine: Machine) -> Diagnosis:
    """Look at everything; nothing is changed, and a driver that hangs is not waited for."""
    return Diagnosis((*gpus(machine), *vllm(machine), cpu(machine)))
