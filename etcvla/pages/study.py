"""Report of a study as one self-contained HTML file.

It reads the files of a published study: summary.json, runs.csv and protocol.json. Learning curves
and videos come from the folders of the runs, if these are there.
"""

from __future__ import annotations

from etils import epath

from etcvla.errors import UserError
from etcvla.files import read_csv
from etcvla.pages import study_sections
from etcvla.pages.page import build_sections, write_page
from etcvla.pages.results import read_json
from etcvla.pages.study_sections import StudyResults

_RUN_COLUMNS = (
    "cell",
    "seed",
    "position",
    "key",
    "stage",
    "steps",
    "seconds",
    "embedding_drift",
    *study_sections.RETENTION,
)

_SECTIONS = (
    ("Contrasts", "study_contrasts.html.j2", study_sections.contrasts),
    ("Gates", "study_gates.html.j2", study_sections.gates),
    ("Scores", "study_scores.html.j2", study_sections.scores),
    ("Language control", "study_language.html.j2", study_sections.language),
    ("Retention", "study_retention.html.j2", study_sections.retention),
    ("Learning curves", "study_curves.html.j2", study_sections.learning),
    ("Cost and matching", "study_costs.html.j2", study_sections.costs),
    ("Videos", "study_videos.html.j2", study_sections.videos),
    ("Protocol", "study_protocol.html.j2", study_sections.protocol),
)


def write_study(workdir: epath.PathLike) -> epath.Path:
    """Write the report of the study in `workdir` to <workdir>/report.html.

    Raises:
      UserError: a file of the results is missing, is not JSON or lacks a column.
    """
    workdir = epath.Path(workdir)
    results = read_results(workdir)
    sections, missing = build_sections(_SECTIONS, results)
    headline = {"results": results, "missing": missing}
    path = workdir / "report.html"
    title = f"{results.summary['study']}: study"
    return write_page(path, "report_study.html.j2", title, sections, headline)


def read_results(workdir: epath.Path) -> StudyResults:
    """Read the results of a study.

    Raises:
      UserError: a file is missing, is not JSON or lacks a column.
    """
    summary = read_json(workdir / "summary.json")
    runs_path = workdir / "runs.csv"
    for path in (workdir / "summary.json", runs_path):
        if not path.exists():
            raise UserError(f"{path} is missing: write it with launch/study.py --report")
    runs = read_csv(runs_path)
    for column in _RUN_COLUMNS:
        if runs and column not in runs[0]:
            raise UserError(
                f"{runs_path} has no column {column!r}: write it again with launch/study.py "
                "--report"
            )
    return StudyResults(workdir, summary, runs, read_json(workdir / "protocol.json", {}))
