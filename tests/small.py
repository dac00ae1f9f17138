"""What the tests of claims on networks share: a store whose runs are small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nonsmooth.networks.setting import Setting
from nonsmooth.networks.store import Store
from nonsmooth.networks.training import trained


class SmallRuns(Store):
    """Makes every run with what `change` says of its setting, in this process."""

    def __init__(self, change: Callable[[Setting], dict[str, Any]]) -> None:
        super().__init__()
        self.change = change

    def run(self, settings):
        small = [replace(s, **self.change(s)) for s in settings]
        for s in small:
            if s.key not in self.rows:
                self.rows[s.key] = trained(s)
        return [self.rows[s.key] for s in small]
