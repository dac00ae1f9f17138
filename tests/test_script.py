"""A script runs as `python script.py` would run it, and its exit code is its own, whatever the audit of it meets."""

from __future__ import annotations

from nonsmooth.torch import audit_command
from nonsmooth.torch.audit_command import audit_script
from nonsmooth.torch.script import run_script

ARGUMENTS = """\
import argparse, dataclasses
@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    epochs: int = 3
parser = argparse.ArgumentParser()
for field in dataclasses.fields(Settings):
    parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
print(parser.parse_args())
"""


def test_annotations_are_what_the_script_wrote_not_strings(tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text(ARGUMENTS)
    run_script(script, ["--epochs", "5"])
    assert capsys.readouterr().out == "Namespace(lr=0.1, epochs=5)\n"


def test_an_error_of_the_audit_s_own_is_one_sentence_and_no_exit_code(tmp_path, monkeypatch):
    def failing(*_: object) -> None:
        raise KeyError("by design")

    monkeypatch.setattr(audit_command.Audit, "finish", failing)
    (tmp_path / "train.py").write_text("raise SystemExit(3)")
    said: list[str] = []
    assert audit_script(tmp_path / "train.py", folder=tmp_path / "out", say=said.append) == 3
    assert said == [
        f"audit: what was found could not be told (KeyError: 'by design'); what was measured is in {tmp_path / 'out'}."
    ]
    assert (tmp_path / "out" / "rows.jsonl").exists()
