"""Language of the code: openings of docstrings, shapes of tensors, raised errors, banned phrases."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import genexp

ROOT = Path(genexp.__file__).parents[1]
CODE_FOLDERS = ("genexp", "scripts")
Function = ast.FunctionDef

INDIRECT_OPENING = re.compile(r"(What|Who|Where|Whether|Which|How)\b")
TENSOR_TYPES = re.compile(r"\b(Tensor|ndarray|NDArray|Batch)\b")
# Axes in parentheses, such as (batch, features) or (clusters,), or a word that replaces them.
SHAPE = re.compile(r"\([^()\s,][^()]*,[^()]*\)|\([a-z_]+,?\)|\b(scalars?|shapes?|shaped)\b")
ERROR = re.compile(r"\braises?\b|Error\b", re.IGNORECASE)
BANNED_PHRASES = (
    "go on with",
    "goes on",
    "is no key",
    "is no file",
    "is no folder",
    "is no run",
    "is no test metric",
    "holds a run",
    "holds no",
    "leave it out",
    "leave out",
    "left out",
    "give one",
    "see to",
    "choose one of",
    "what suits",
    "anew",
    "whole number",
    "as they are",
    "beside each other",
    "all that can be",
)
USER_ERRORS = re.compile(r"\w*(Config|Data|Checkpoint|RankFailed|Divergence|Plugin|RunDirInUse|Genexp)Error")
SEPARATE_REMEDY = re.compile(r"; (use|set|choose|give|see|add|raise|lower|remove|start|resume|check|did you)\b")


@cache
def parse_modules() -> dict[Path, ast.Module]:
    """Return path → syntax tree of every module of the package and the scripts."""
    paths = [path for folder in CODE_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@cache
def find_classes() -> dict[str, ast.ClassDef]:
    """Return name → class of all modules. tests/test_architecture.py checks that the names are unique."""
    nodes = (node for tree in parse_modules().values() for node in ast.walk(tree))
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def find_docstring(name: str, parent: ast.Module | ast.ClassDef) -> str:
    """Return the docstrings of a function and of the methods that it overrides."""
    docstrings = [
        ast.get_docstring(node) or "" for node in parent.body if isinstance(node, Function) and node.name == name
    ]
    for base in parent.bases if isinstance(parent, ast.ClassDef) else ():
        base_class = find_classes().get(ast.unparse(base).partition("[")[0])
        if base_class is not None:
            docstrings.append(find_docstring(name, base_class))
    return "\n".join(docstrings)


def iter_public_functions() -> Iterator[tuple[str, Function, str]]:
    """Yield "path:line name", syntax tree and docstring of all public functions and methods of public classes."""
    for path, tree in parse_modules().items():
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        parents: list[ast.Module | ast.ClassDef] = [tree, *classes]
        for parent in parents:
            for node in parent.body:
                if isinstance(node, Function) and not node.name.startswith("_"):
                    yield f"{path}:{node.lineno} {node.name}", node, find_docstring(node.name, parent)


def has_tensors(function: Function) -> bool:
    """Return whether a parameter or the result is annotated as a tensor, an array or a batch."""
    arguments = function.args
    parameters = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    annotations = [function.returns, *(parameter.annotation for parameter in parameters if parameter is not None)]
    return any(TENSOR_TYPES.search(ast.unparse(node)) for node in annotations if node is not None)


def raises_error(function: Function) -> bool:
    """Return whether a function raises a new error, outside of functions that it defines."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Raise) and node.exc is not None and ast.unparse(node.exc) != "NotImplementedError":
            return True
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            nodes.extend(ast.iter_child_nodes(node))
    return False


@pytest.mark.parametrize("path", parse_modules(), ids=str)
def test_module_docstring_does_not_open_with_an_indirect_question(path: Path) -> None:
    docstring = ast.get_docstring(parse_modules()[path])
    assert docstring or path.name == "__init__.py"
    assert not INDIRECT_OPENING.match(docstring or "")


def test_docstrings_of_functions_with_tensors_state_shapes() -> None:
    missing = [
        name
        for name, function, docstring in iter_public_functions()
        if has_tensors(function) and not SHAPE.search(docstring)
    ]
    assert not missing, "\n".join(missing)


def test_docstrings_of_functions_that_raise_say_so() -> None:
    missing = [
        name
        for name, function, docstring in iter_public_functions()
        if raises_error(function) and not ERROR.search(docstring)
    ]
    assert not missing, "\n".join(missing)


def list_texts() -> Iterator[tuple[str, str]]:
    """Yield ("path:line", text) of all strings of the code, and of the lines of YAML and HTML files."""
    for path, tree in parse_modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path}:{node.lineno}", " ".join(node.value.split())
    for pattern in ("conf/**/*.yaml", "genexp/**/*.html"):
        for path in sorted(ROOT.glob(pattern)):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                yield f"{path.relative_to(ROOT)}:{number}", line


def list_messages() -> Iterator[tuple[str, str]]:
    """Yield ("path:line", source) of the message of each error for users that is raised with a literal message."""
    for path, tree in parse_modules().items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                continue
            message = node.exc.args[0]
            if USER_ERRORS.fullmatch(ast.unparse(node.exc.func)) and isinstance(
                message, ast.JoinedStr | ast.Constant
            ):
                yield f"{path}:{node.lineno}", ast.unparse(message).strip("f'\"")


def list_rules() -> Iterator[tuple[str, str]]:
    """Yield ("path:line", rule) of each call of `require` with a literal rule."""
    for path, tree in parse_modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "require" and len(node.args) == 4:
                rule = node.args[3]
                if isinstance(rule, ast.JoinedStr | ast.Constant):
                    yield f"{path}:{node.lineno}", ast.unparse(rule).strip("f'\"")


@pytest.mark.parametrize("phrase", BANNED_PHRASES)
def test_phrase_is_not_used(phrase: str) -> None:
    pattern = re.compile(rf"\b{phrase}\b", re.IGNORECASE)
    assert [place for place, text in list_texts() if pattern.search(text)] == []


def test_messages_are_a_reason_and_a_remedy_as_sentences() -> None:
    """A message ends with a sentence, or with a value that contains one, such as a suggestion."""
    messages = list(list_messages())
    assert len(messages) > 100
    wrong = [f"{place} {text}" for place, text in messages if not text.endswith((".", "?", "}", ".\\n"))]
    wrong += [f"{place} {text}" for place, text in messages if SEPARATE_REMEDY.search(text)]
    assert not wrong, "\n".join(wrong)


def test_rules_of_settings_complete_the_message() -> None:
    rules = list(list_rules())
    assert len(rules) > 80
    wrong = [f"{place} {rule}" for place, rule in rules if not rule.startswith(("must ", "requires ", "{"))]
    assert not wrong, "\n".join(wrong)
