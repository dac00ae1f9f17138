"""Write source into the pages that show it: `python docs/include.py`.

A page asks for source by a marker, `<!-- include: PATH NAME -->`, and the block below it is rewritten. NAME is a class,
a function or a variable of the module, or an entry of its dictionary, as in `ZOO["huber"]`. The block's language is
`py`, which is shown and not run: a `python` block of a page is run by the tests.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- include: (?P<path>\S+) (?P<name>[^\n]+?) -->\n(?:\n*```py\n.*?\n```\n)?", re.DOTALL)


def source_of(source: str, name: str) -> str:
    """The lines that define a name, decorators included; those of an entry of a dictionary lose their indentation.

    >>> source_of("a = 1\\n@d\\nclass B:\\n    c = 2\\n", "B")
    '@d\\nclass B:\\n    c = 2'
    >>> source_of("zoo = {\\n    'a': 1,\\n    'b': 2,\\n}", 'zoo["b"]')
    "'b': 2,"
    """
    wanted = ast.parse(name, mode="eval").body
    outer = wanted.value if isinstance(wanted, ast.Subscript) else wanted
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                defined, first = node.name, min([node, *node.decorator_list], key=lambda part: part.lineno)
            case ast.Assign(targets=[ast.Name(defined)]) | ast.AnnAssign(target=ast.Name(defined)):
                first = node
            case _:
                continue
        if defined != ast.unparse(outer):
            continue
        if outer is wanted:
            return lines(source, first, node)
        if isinstance(value := getattr(node, "value", None), ast.Dict):
            for key, entry in zip(value.keys, value.values):
                if key is not None and ast.unparse(key) == ast.unparse(wanted.slice):
                    return lines(source, key, entry)
    raise LookupError(f"there is no {name}")


def lines(source: str, first: ast.AST, last: ast.AST) -> str:
    return textwrap.dedent("\n".join(source.splitlines()[first.lineno - 1 : last.end_lineno]))


def included(page: str, root: Path = ROOT) -> str:
    """The page with every block as the source has it now; raises LookupError where the source has no such name."""

    def block(found: re.Match[str]) -> str:
        path, name = found["path"], found["name"]
        try:
            code = source_of((root / path).read_text(encoding="utf-8"), name)
        except (OSError, SyntaxError, LookupError) as error:
            raise LookupError(f"<!-- include: {path} {name} -->: {error}") from error
        return f"<!-- include: {path} {name} -->\n```py\n{code}\n```\n"

    return BLOCK.sub(block, page)


if __name__ == "__main__":
    for file in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]):
        before = file.read_text(encoding="utf-8")
        if (after := included(before)) != before:
            file.write_text(after, encoding="utf-8")
            print(file.relative_to(ROOT))
