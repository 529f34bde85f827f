"""Text in a config is what was written, and a file that is none is refused in a line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import refusal

from affnorm_zoo.config import config_to_yaml, load_config
from affnorm_zoo.errors import UsageError

TEXT = [
    "/data/photos #2", "~", "1:30", "@home/x", "%TEMP%/x", "[set] 1", "x: y", "/data/it's", '"quoted"', "'q'", "0123",
    "1e3", "yes", "Null", "2024-01-01", "- a", "{a: b}", "${HOME}/x", "\\${x}", "a\\\\${b", "!tag", "&a", "*a", "|",
    ">", "a\tb", " a ", "é", "#", "?", "`x`", "=", "a=b",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXT)
def test_text_is_taken_as_it_is_written(text, tmp_path):
    for key in ("path", "note", "train_split", "auto_augment", "preset"):
        config = load_config(overrides=["data.path=x", f"data.{key}={text}", "data.crop=resized"])
        assert getattr(config.data, key) == text
        (tmp_path / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        assert load_config([tmp_path / "config.yaml"]) == config


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(str.strip))
def test_so_is_any_other(text):
    if text != "null" and text != "???":  # with which omegaconf marks what is missing
        assert load_config(overrides=[f"data.note={text}"]).data.note == text


@pytest.mark.parametrize("text", ["1:30", "0123", "yes", "1e3", "2024-01-01", "~", "${HOME}", "0x10", ".5"])
def test_plain_text_in_a_file_is_text_too(text, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        f"data:\n  path: {text}\n  preset: {text}\nruntime:\n  trackers: [{text if '{' not in text else 'x'}]"
    )
    config = load_config([file])
    assert config.data.path == config.data.preset == text
    assert config.runtime.trackers == ((text,) if "{" not in text else ("x",))
    file.write_text("data:\n  path: null\n  preset:\n")
    assert load_config([file]).data.path is load_config([file]).data.preset is None


@pytest.mark.parametrize(
    "text",
    ["data: {path: [a]}", "data: {path: {a: b}}", "train:", "3", "data: [1]", "? [1]\n: 2", "? {a: 1}\n: 2", "null: 3",
     "x: &a [*a]", "data: {note: !!python/name:os.system ''}", "<<: 3", "\0", "a: b\n---\nc: d",
     "data: {path: @home/x}",
     "data: {path: [set] 1}", "data:\n  path: x: y", "data:\n  path: %TEMP%", "checkpoint: {milestones: [1:30]}"],
)  # fmt: skip
def test_a_file_that_means_nothing_is_refused_in_a_line(text, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert "config.yaml" in refusal(lambda: load_config([file]))
    assert "\n" not in refusal(lambda: load_config([file]))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_a_config_must_be_utf_8(encoding, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data:\n  note: café\n", encoding=encoding)
    if encoding == "utf-8-sig":
        assert load_config([file]).data.note == "café"
        return
    with pytest.raises(UsageError, match=r"config.yaml must be UTF-8: .*byte 0x"):
        load_config([file])
