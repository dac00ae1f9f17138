"""A watched run as one self-contained HTML file: findings on top, then the timeline, the census and how it was run."""

from nonsmooth.torch.run_report.folder import Run, number, read_run
from nonsmooth.torch.run_report.page import render_run, write_page, write_run_report

__all__ = ["Run", "number", "read_run", "render_run", "write_page", "write_run_report"]
