"""Plugins of a run: record, checks, changed versions and damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genexp.errors import CheckpointError
from genexp.registry import Plugin
from genexp.run_dir.environment import check_plugins, write_plugins


def make_plugin(sha256: str = "a" * 64, name: str = "ideas") -> Plugin:
    """Return a plugin of a file that does not exist."""
    return Plugin(f"/code/{name}.py", name, Path(f"/code/{name}.py"), sha256)


def test_plugins_are_noted_with_file_and_checksum(tmp_path: Path) -> None:
    write_plugins(tmp_path, [make_plugin()])
    content = json.loads((tmp_path / "plugins.json").read_text())
    assert content == [{"name": "ideas", "file": "/code/ideas.py", "sha256": ["a" * 64]}]
    assert check_plugins(tmp_path, [make_plugin(), make_plugin(name="other")]) == []


def test_run_without_plugins_has_no_file(tmp_path: Path) -> None:
    write_plugins(tmp_path, [])
    assert not list(tmp_path.iterdir())
    assert check_plugins(tmp_path, []) == []


def test_missing_plugin_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_plugins(tmp_path, [make_plugin()])
    with pytest.raises(CheckpointError, match=r"requires the plugin ideas. Add --plugin /code"):
        check_plugins(tmp_path, [make_plugin(name="other")])


def test_changed_plugin_is_a_warning_and_both_checksums_are_kept(tmp_path: Path) -> None:
    write_plugins(tmp_path, [make_plugin()])
    (warning,) = check_plugins(tmp_path, [make_plugin("b" * 64)])
    assert "the plugin ideas has changed" in warning
    assert f"SHA-256 {'a' * 12}…, now {'b' * 12}…" in warning
    for _ in range(2):
        write_plugins(tmp_path, [make_plugin("b" * 64)])
    (entry,) = json.loads((tmp_path / "plugins.json").read_text())
    assert entry["sha256"] == ["a" * 64, "b" * 64]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "3", "[3]", "[{}]", "[" * 9999),
        '[{"name": 1, "file": "a", "sha256": ["b"]}]',
        '[{"name": "x\\u001b", "file": "a", "sha256": ["b"]}]',
        '[{"name": "x", "file": "a", "sha256": []}]',
    ],
    ids=range(9),
)
def test_damaged_record_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "plugins.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"plugins\.json: not a list of plugins\. Restore the file\."):
        check_plugins(tmp_path, [])


def test_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("[]")
    (tmp_path / "plugins.json").symlink_to("target")
    with pytest.raises(CheckpointError):
        check_plugins(tmp_path, [])
