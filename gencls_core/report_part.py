"""What every part of a report is: frozen values, with no field unknown and no figure infinite."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["ReportPart"]


class ReportPart(BaseModel):
    """A part of a `report.json`, or of what `run.json` says like it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
