"""Rows of the ledger and their figures, as one self-contained HTML file."""

from __future__ import annotations

from nonsmooth.report.page import render, write_report

__all__ = ["render", "write_report"]
