"""Writing a report: Markdown, CSV, figures, and one self-contained page of HTML."""

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trpo_jax.errors import FileError
from trpo_jax.sweep.report.figures import make_figures
from trpo_jax.sweep.report.scores import SweepScores, read_scores
from trpo_jax.sweep.report.tables import Table, make_tables, show

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p { max-width: 48rem; }
figure { margin: 1rem 0 2rem; } figure svg { width: 100%; height: auto; } figcaption { color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: left; white-space: nowrap; border-bottom: 1px solid #ddd; }
td.number { font-variant-numeric: tabular-nums; }
"""


def write_report(sweep_dir: Path | str, out: Path | str | None = None) -> Path:
    """Write the report of a sweep, finished or not; return the path of its page.

    Args:
        sweep_dir: folder of the sweep.
        out: folder for report.html, report.md, a CSV file per table, and a PNG and an SVG file per figure. It is made if it
            is missing; files of the same names are overwritten. None stands for SWEEP_DIR/report.

    Raises:
        ConfigError: `sweep_dir` holds no sweep, or none of its runs is finished. MissingPackageError: matplotlib is not
            installed. FileError: `out` cannot be written.
    """
    scores = read_scores(sweep_dir)
    folder = Path(sweep_dir) / "report" if out is None else Path(out)
    tables, figures = make_tables(scores), make_figures(scores)
    drawings = {name: (about, _svg(figure, name)) for name, (about, figure) in figures.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for table in tables:
            (folder / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
        for name, (_, figure) in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
            (folder / f"{name}.svg").write_text(drawings[name][1], encoding="utf-8")
        title = f"Sweep {Path(sweep_dir).absolute().name}"
        abouts = {name: about for name, (about, _) in figures.items()}
        (folder / "report.md").write_text(_markdown(title, scores, tables, abouts), encoding="utf-8")
        (folder / "report.html").write_text(_page(title, scores, tables, drawings), encoding="utf-8")
    except OSError as error:
        raise FileError.unwritable(folder, error) from None
    return folder / "report.html"


def _summary(scores: SweepScores) -> str:
    seeds = len({run.seed for run in scores.runs})
    counts = {"environment": len(scores.environments), "setting": len(scores.settings), "seed": seeds}
    of = " × ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items())
    return f"{scores.num_finished} of {scores.num_planned} runs are finished: {of}."


def _markdown(title: str, scores: SweepScores, tables: Sequence[Table], figures: dict[str, str]) -> str:
    parts = [f"# {title}\n{_summary(scores)}\n"]
    parts += [f"## {table.title}\n{table.about}\n\n{table.markdown()}" for table in tables]
    parts += ["## Figures\n" + "\n".join(f"![{about}]({name}.png)\n\n{about}\n" for name, about in figures.items())]
    return "\n".join(parts)


def _page(title: str, scores: SweepScores, tables: Sequence[Table], figures: dict[str, tuple[str, str]]) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(_summary(scores))}</p>"]
    for name, (about, svg) in figures.items():
        parts.append(f'<figure id="{name}">{svg}<figcaption>{html.escape(about)}</figcaption></figure>')
    for table in tables:
        parts += [f"<h2>{html.escape(table.title)}</h2>", f"<p>{html.escape(table.about)}</p>", _html_table(table)]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.rows[0])
    rows = ["".join(map(_cell, row.values())) for row in table.rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table id="{table.name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    kind = "" if isinstance(value, str) else ' class="number"'
    return f"<td{kind}>{html.escape(show(value))}</td>"


def _svg(figure: Any, name: str) -> str:
    """Return a figure as an SVG element, without a file's prologue; its ids differ from those of other figures."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
