"""Names and paths in recipes, data, archives and run folders cannot lead outside, and odd ids break no file."""

from __future__ import annotations

import io
import json
import re
import stat
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from whole_runs import run

import kdfw
from kdfw.data.store import read_manifest
from kdfw.errors import ArtifactError, ConfigError, DataError, KdfwError

NAMES = ["../evil", "/tmp/evil", "a/b", "..", ".", "a\\b", "a\nb", "a\0b", "", "x" * 300, "-rf", "CON\u202e"]


def everything_below(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_could_be_paths_are_refused(workspace: Path, tmp_path: Path, name: str):
    recipe = tmp_path / "recipe.yaml"
    text = (workspace / "recipe.yaml").read_text(encoding="utf-8")
    written = json.dumps(name)
    for old, new in [
        ("name: tiny", f"name: {written}"),
        ("name: mined", f"name: {written}"),
        ("  student: {", f"  {written}: {{"),
        ("student: student", f"student: student\n    also_train: {{{written}: teacher}}"),
        ("data: {type", f"data: {{{written}: {{type"),
    ]:
        assert old in text
        changed = text.replace(old, new, 1)
        if old.startswith("data"):
            changed = changed.replace("beir}", "beir}}", 1)
        recipe.write_text(changed, encoding="utf-8")
        with pytest.raises(ConfigError):
            kdfw.plan(recipe)


def image(color: int = 0) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (4, 4), color).save(stream, "PNG")
    return stream.getvalue()


def images(path: Path, tmp_path: Path, **options: object) -> object:
    from kdfw.plugins import registry

    return registry().get("dataset", "images")(path=path, **options).open(tmp_path / "cache")  # type: ignore[attr-defined]


def test_members_of_an_archive_are_never_written_anywhere(tmp_path: Path):
    archive = tmp_path / "in" / "images.zip"
    archive.parent.mkdir()
    outside = tmp_path / "secret.png"
    outside.write_bytes(image(255))
    with zipfile.ZipFile(archive, "w") as file:
        for number, label in enumerate("ab"):
            file.writestr(f"train/{label}/{number}.png", image(number))
        for name in ("../../evil.png", "train/../evil.png", "/abs/a/evil.png", "../x/evil.png", "train/a/../../e.png"):
            file.writestr(name, image(9))
        link = zipfile.ZipInfo("train/a/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, str(outside))
    before = everything_below(tmp_path)
    with pytest.raises(DataError):  # the link's content is a path and no image
        images(archive, tmp_path)
    data = images(archive, tmp_path, on_error="skip")
    new = everything_below(tmp_path) - before
    assert new and all(path.is_relative_to(tmp_path / "cache") for path in new)
    assert not [path for path in new if "evil" in path.name or path.suffix == ".png"]
    assert data.splits  # type: ignore[attr-defined]


def test_a_zip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path):
    import resource

    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/a/ok.png", image())
        with file.open("train/a/bomb.png", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
    assert archive.stat().st_size < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"bomb\.png"):
        images(archive, tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024


def test_an_image_of_absurd_size_is_refused(tmp_path: Path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    folder = tmp_path / "in" / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "huge.png").write_bytes(png + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"huge\.png"):
        images(tmp_path / "in", tmp_path)


def test_a_plan_of_a_run_folder_cannot_export_from_elsewhere(tmp_path: Path):
    from kdfw.engine.export import export_student

    (tmp_path / "secret" / "model").mkdir(parents=True)
    (tmp_path / "secret" / "model" / "key").write_text("x")
    run_folder = tmp_path / "run"
    (run_folder / "stages").mkdir(parents=True)
    for folder in ("../../secret", str(tmp_path / "secret")):
        plan = {"stages": [{"name": "distill", "type": "train", "folder": folder}]}
        (run_folder / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(KdfwError, match="outside"):
            export_student(run_folder, tmp_path / "to")
    (run_folder / "stages" / "01-x").symlink_to(tmp_path / "secret")
    (run_folder / "plan.json").write_text(
        json.dumps({"stages": [{"name": "distill", "type": "train", "folder": "01-x"}]})
    )
    with pytest.raises(KdfwError, match="outside"):
        export_student(run_folder, tmp_path / "to")
    for broken in ("[]", '{"stages": 3}', '{"stages": [1]}', '{"stages": [{}]}', "{", '{"stages": [{"folder": {}}]}'):
        (run_folder / "plan.json").write_text(broken)
        with pytest.raises(KdfwError):
            export_student(run_folder, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["../manifest.json", "x/../manifest.json", "/etc/passwd", "../../secret"])
def test_the_manifest_of_a_cache_folder_cannot_name_files_elsewhere(tmp_path: Path, name: str):
    from kdfw.fingerprint import fingerprint

    (tmp_path / "data" / "x").mkdir(parents=True)
    value = {"files": {name: {"size": 1, "digest": "0"}}}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({**value, "checksum": fingerprint(value)}))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_manifest(tmp_path / "data")


# ---------------------------------------------------------------- ids and texts

HOSTILE = [
    "../../etc/passwd", "/abs/olute", "..", "a|b", "<script>alert(1)</script>", "</script><img/src=x/onerror=alert(1)>",
    '"><svg/onload=alert(1)>', "&lt;b&gt;", "{{7*7}}", "\u202egnp.exe", "=cmd|'/C'!A0", "--help", "%00",
    "\U0001f600", "';DROP/**/TABLE--",
]  # fmt: skip


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def hostile(workspace: Path, tmp_path: Path) -> Iterator[Path]:
    """Data whose ids and texts are attacks, with a run that saw them."""
    folder = tmp_path / "<b>beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": f"p{text}", "title": text, "text": f"{text} water stone {number}"}
        for number, text in enumerate(HOSTILE)
    ]
    queries = [{"_id": f"q{text}", "text": f"{text} water"} for text in HOSTILE]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for split in ("train", "dev", "test"):
        lines = "".join(f"q{text}\tp{text}\t1\n" for text in HOSTILE)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines, encoding="utf-8")
    yield folder


def test_a_run_on_hostile_ids_and_texts_stays_inside_and_its_report_holds_no_markup(
    workspace: Path, hostile: Path, tmp_path: Path
):
    from kdfw.data.runs import read_run

    before = everything_below(tmp_path)
    out = tmp_path / "run"
    result = run(workspace / "recipe.yaml", out, f"data.folder={json.dumps(str(hostile))}",
                 "description='<script>alert(2)</script> ``` <script>alert(3)</script>'")  # fmt: skip
    new = everything_below(tmp_path) - before
    assert all(path.is_relative_to(out) or path.is_relative_to(tmp_path / "cache") for path in new)
    expected = {f"q{text}" for text in HOSTILE}
    for path in out.glob("stages/*-test/run.*.trec"):
        assert set(read_run(path)) == expected
    text = result.report.read_text(encoding="utf-8")
    page = Page(text)
    assert not [names for _, names in page.tags if any(name.startswith("on") for name in names)]
    assert "<script>alert" not in text and "<svg/onload" not in text and "<img/src=x" not in text
    for card in out.glob("stages/*/model/README.md"):
        outside = re.sub(
            r"^(`{3,})\w*\n.*?^\1`*$", "", card.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        )
        assert "<script>alert" not in outside


@pytest.mark.parametrize("id", ["a\tb", "a\nb", "a\0b", "", "a\x1bb", "a b", "a\u00a0b", " a", "a\u2028b"])
def test_ids_that_no_run_file_can_hold_are_refused_with_their_line(
    workspace: Path, tmp_path: Path, hostile: Path, id: str
):
    with (hostile / "corpus.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"_id": id, "text": "water"}) + "\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl:16"):
        run(workspace / "recipe.yaml", tmp_path / "run", f"data.folder={json.dumps(str(hostile))}")
