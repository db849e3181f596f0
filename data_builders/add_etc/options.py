"""Options of the converter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from etcvla.etc.annotators.detector import Detector
from etcvla.etc.annotators.endpoint import Endpoint

CALIBRATIONS = Path(__file__).with_name("calibrations")


@dataclasses.dataclass(frozen=True)
class AddEtcOptions:
    """Sources of facts for the annotation."""

    adapter: str = "own"  # a name or a file, see `find_adapter`
    num_objects: int = 6  # object slots of the annotation
    calibration: str = ""  # a file, or one of `shipped_calibrations`; "": cameras are unknown
    detector: Detector | None = None
    endpoint: Endpoint | None = None
    objects: tuple[str, ...] = ()  # nouns to detect; (): those of the endpoint or the instruction
    stride: int = 5  # steps between two frames that the detector processes
    threads: int = 1  # episodes that are annotated at the same time if there is an endpoint

    @property
    def calibration_file(self) -> Path | None:
        """File of the calibration, None without one."""
        if not self.calibration:
            return None
        return find_calibration(self.calibration)


def find_calibration(name: str) -> Path:
    """Return the file of a shipped calibration, or else the file `name`."""
    if name in shipped_calibrations():
        return CALIBRATIONS / f"{name}.json"
    return Path(name)


def shipped_calibrations() -> list[str]:
    """Return the names of the calibrations that come with the package."""
    return sorted(path.stem for path in CALIBRATIONS.glob("*.json"))
