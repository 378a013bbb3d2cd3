"""The model card: what it says, and that names stay text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kdfw.report.card import model_card, write_card

FACTS: dict[str, Any] = {
    "name": "quickstart",
    "type": "bi-encoder",
    "base": "microsoft/MiniLM-L12-H384-uncased",
    "parameters": 15_615_360,
    "teachers": ["teacher: cross-encoder/ms-marco-MiniLM-L6-v2"],
    "data": ["pydocs, split train"],
    "losses": ["kl"],
    "recipe": "kdfw: 1\nname: quickstart\n",
    "measures": {"bm25": {"nDCG@10": 0.46231}, "distill": {"nDCG@10": 0.58134, "RR@10": 0.6}},
    "measured_on": "323 queries of the split test",
    "sentence_transformers": "SentenceTransformer",
    "architecture": "BertModel",
    "query_prefix": "query: ",
    "max_query_tokens": 32,
    "seed": 13,
}


def header(card: str) -> dict[str, Any]:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def test_the_card_says_what_was_made_of_what() -> None:
    card = model_card(FACTS)
    assert header(card) == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": "microsoft/MiniLM-L12-H384-uncased",
        "tags": ["sentence-transformers", "kdfw", "knowledge-distillation"],
    }
    assert "A bi-encoder with 15.6M parameters, started from `microsoft/MiniLM-L12-H384-uncased`" in card
    assert "| bm25 | 0.4623 |  |\n| distill | 0.5813 | 0.6000 |" in card
    assert "model.encode_query(['how do I sort a list?'])" in card and "begin with `'query: '`" in card
    assert "queries after 32 tokens" in card
    assert "For this model none was given." in card and "base models, teachers, data" in card
    assert "```yaml\nkdfw: 1\nname: quickstart\n```" in card


def test_a_cross_encoder_is_loaded_as_one_and_a_licence_is_passed_on() -> None:
    facts = {**FACTS, "type": "cross-encoder", "license": "mit", "licences": ["data x: cc0-1.0"]}
    card = model_card({**facts, "sentence_transformers": "CrossEncoder"})
    assert 'CrossEncoder("PATH")' in card and "SentenceTransformer(" not in card
    assert header(card)["license"] == "mit" and "This model: mit." in card and "- data x: cc0-1.0" in card


def test_a_card_without_facts_is_still_a_card() -> None:
    card = model_card({})
    assert "library_name" not in header(card)
    assert "It has not been measured in this run." in card


def test_a_local_folder_is_not_given_as_a_base_model() -> None:
    assert "base_model" not in header(model_card({"base": "/home/me/model"}))


def test_hostile_names_stay_text() -> None:
    evil = "<script>alert(1)</script>|`x`[a](b)"
    card = model_card(
        {"name": evil, "base": evil, "teachers": [evil], "measures": {evil: {evil: 1.0}}, "recipe": "a\n```\n# b"}
    )
    outside = "\n".join(line for line in card.splitlines() if "started from" not in line)
    assert "<script>" not in outside and "&lt;script>" in outside
    assert "`` <script>alert(1)</script>|`x`[a](b) ``" in card  # a code span cannot be left from inside
    assert "````yaml\na\n```\n# b\n````" in card
    row = next(line for line in card.splitlines() if line.startswith("| &lt;script"))
    assert row.count("|") - row.count("\\|") == 3  # the name's own bar does not make a column


def test_a_header_cannot_be_broken_by_a_value() -> None:
    assert header(model_card({"license": "mit\n---\nevil: 1"}))["license"] == "mit --- evil: 1"
    found = header(model_card({"language": "en: {x"}))
    assert found["language"] == "en: {x"


def test_write_card_writes_the_readme(tmp_path: Path) -> None:
    path = write_card(tmp_path, FACTS)
    assert path == tmp_path / "README.md" and path.read_text(encoding="utf-8") == model_card(FACTS)
