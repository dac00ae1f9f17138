"""What the pages have in common: dress, figures, tables, and how they are written: whole or not at all."""

from __future__ import annotations

from nonsmooth.pages.figures import check_plots, drawn_plot, drawn_table, is_number, is_table
from nonsmooth.pages.skeleton import date, document, seconds, write_whole

__all__ = [
    "check_plots",
    "date",
    "document",
    "drawn_plot",
    "drawn_table",
    "is_number",
    "is_table",
    "seconds",
    "write_whole",
]
