"""Conversations from files: what is supervised, what is dropped, what is kept, how epochs run."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dmax.models import Tokenizer, load_tokenizer
from dmax.training.conversations import (
    Conversations,
    conversation_texts,
    load_conversations,
    read_rows,
    tokenized,
)
from dmax.training.data import DataError, Example
from dmax.training.data_sections import HubSection, JsonlSection

datasets = pytest.importorskip("datasets")

EOS = 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
    return folder


def jsonl(path: Path, *rows: dict[str, Any]) -> JsonlSection:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return JsonlSection(source="jsonl", path=str(path))


def load(section: JsonlSection | HubSection, tokenizer: Tokenizer, context: int = 100, seed: int = 0) -> Conversations:
    return load_conversations(section, tokenizer, context, seed)


def parts(example: Example, tokenizer: Tokenizer) -> tuple[str, str]:
    """Prompt and response as text, special tokens written out; the response is what is supervised."""
    start = example.supervised.index(True)
    assert not any(example.supervised[:start]) and all(example.supervised[start:])
    text = [tokenizer.pipeline.decode(list(ids), skip_special_tokens=False) for ids in _cut(example.token_ids, start)]
    return text[0], text[1]


def _cut(ids: tuple[int, ...], start: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return ids[:start], ids[start:]


def test_a_question_is_prompt_and_its_answer_with_eos_is_supervised(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = load(jsonl(tmp_path / "a.jsonl", {"question": "2+2?", "answer": "4", "note": 1}), tokenizer)
    example = source.example(0)
    assert parts(example, tokenizer) == ("<user>2+2?<assistant>", "4<eos>")
    assert example.token_ids[-1] == EOS


def test_of_a_chat_the_last_turn_is_supervised(tokenizer: Tokenizer, tmp_path: Path) -> None:
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "so long")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    source = load(jsonl(tmp_path / "a.jsonl", row), tokenizer)
    expected = ("<user>hi<assistant>hello<user>bye<assistant>", "so long<eos>")
    assert parts(source.example(0), tokenizer) == expected


def test_content_in_parts_is_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    turns = [("user", ["2", "+2?"]), ("assistant", ["4"])]
    parted = [{"role": role, "content": [{"type": "text", "text": text} for text in texts]} for role, texts in turns]
    section = jsonl(tmp_path / "a.jsonl", {"messages": parted})
    assert parts(load(section, tokenizer).example(0), tokenizer) == ("<user>2+2?<assistant>", "4<eos>")
    assert list(conversation_texts(section, 1)) == ["2+2?\n4"]
    images = [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "four"}]
    with pytest.raises(DataError, match=r"row 1 .*part 1 of a turn's content is image_url; only text is taken"):
        load(jsonl(tmp_path / "b.jsonl", {"messages": images}), tokenizer)


def test_the_prompt_is_the_one_that_generation_reads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    question = "one two?"
    example = load(jsonl(tmp_path / "a.jsonl", {"question": question, "answer": "x"}), tokenizer).example(0)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}])
    assert list(example.token_ids[: len(prompt)]) == prompt


def test_a_tokenizer_can_be_trained_on_what_is_said(tmp_path: Path) -> None:
    section = jsonl(tmp_path / "a.jsonl", *({"question": f"q{i}", "answer": f"a{i}"} for i in range(3)))
    assert list(conversation_texts(section, 2)) == ["q0\na0", "q1\na1"]


def test_a_folder_of_files_is_one_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(3):
        jsonl(folder / f"{i}.jsonl", {"question": f"q{i}", "answer": f"a{i}"})
    source = load(JsonlSection(source="jsonl", path=str(folder)), tokenizer)
    assert len(source) == 3


def test_a_folder_in_the_form_of_a_published_data_set_is_read_as_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The published trajectories: parquet shards of the columns question and answer, in the split train."""
    folder = tmp_path / "trajectories"
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]
    for shard in range(2):
        part = datasets.Dataset.from_list(rows[2 * shard : 2 * shard + 2])
        part.to_parquet(folder / "data" / f"train-{shard:05d}-of-00002.parquet")
    source = load(HubSection(source="hub", path=str(folder)), tokenizer)
    seen = {parts(source.example(i), tokenizer) for i in range(4)}
    assert seen == {(f"<user>q{i}<assistant>", f"a{i}<eos>") for i in range(4)}
    with pytest.raises(DataError, match=r"cannot be read.*test"):
        load(HubSection(source="hub", path=str(folder), split="test"), tokenizer)


def test_rows_longer_than_the_context_are_dropped_whole_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a" * length} for length in (3, 4, 50)]
    section = jsonl(tmp_path / "a.jsonl", *rows)
    exact = len("q") + 2 + 4 + 1  # the two role tokens, the longer answer that fits, EOS
    source = load(section, tokenizer, context=exact)
    assert (len(source), source.dropped) == (2, 1)
    assert sorted(len(source.example(i).token_ids) for i in range(2)) == [exact - 1, exact]
    with pytest.raises(DataError, match="3 of 3 are longer than 2 tokens"):
        load(section, tokenizer, context=2)


def test_every_epoch_reads_every_row_once_in_an_order_of_its_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(20)]
    section = jsonl(tmp_path / "a.jsonl", *rows)
    source = load(section, tokenizer)
    epochs = [[source.example(20 * epoch + i) for i in range(20)] for epoch in range(3)]
    assert all(max(Counter(epoch).values()) == 1 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = load(section, tokenizer)
    assert again.example(47) == epochs[2][7]
    assert [load(section, tokenizer, seed=1).example(i) for i in range(20)] != epochs[0]


def test_the_tokens_are_kept_and_read_again(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = jsonl(tmp_path / "a.jsonl", {"question": "q", "answer": "a"})
    first = load(section, tokenizer).example(0)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *_: pytest.fail("tokenised a second time"))
    assert load(section, tokenizer, context=50, seed=3).example(0) == first


def test_another_chat_form_is_tokenised_anew(tokenizer: Tokenizer, tmp_path: Path) -> None:
    section = jsonl(tmp_path / "a.jsonl", {"question": "q", "answer": "a"})
    first = load(section, tokenizer).example(0)
    other = Tokenizer(tokenizer.pipeline, tokenizer.settings, "[{{ messages[0].content }}]")
    assert parts(load(section, other).example(0), other) == ("[q]", "a<eos>") != parts(first, tokenizer)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q"},
        {"question": "q", "answer": None},
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]},
        {"messages": "q"},
    ],
)
def test_a_row_that_is_no_conversation_is_named(tokenizer: Tokenizer, tmp_path: Path, row: dict[str, Any]) -> None:
    rows = datasets.Dataset.from_list([row])
    with pytest.raises(DataError, match="row 1 of talks is no conversation"):
        tokenized(rows, tokenizer, "talks")


def test_a_chat_that_the_template_refuses_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    strict = Tokenizer(tokenizer.pipeline, tokenizer.settings, "{{ raise_exception('no') }}")
    with pytest.raises(DataError, match=r"row 1 of .*a\.jsonl: The chat template"):
        load(jsonl(tmp_path / "a.jsonl", {"question": "q", "answer": "a"}), strict)


def test_data_that_is_not_there_or_not_json_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data at .*absent"):
        read_rows(JsonlSection(source="jsonl", path=str(tmp_path / "absent.jsonl")))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "q", "answer"\n')
    with pytest.raises(DataError, match=r"broken\.jsonl' cannot be read"):
        read_rows(JsonlSection(source="jsonl", path=str(broken)))


def test_the_tokens_that_close_a_turn_are_supervised(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A template may end a turn with a token of its own; EOS follows it, and what follows EOS is left out."""
    section = jsonl(tmp_path / "a.jsonl", {"question": "q", "answer": " a "})
    opening = "<user>{{ messages[0].content }}<assistant>"
    for ending, expected in (("</s>", "a</s><eos>"), ("<eos>\n", "a<eos>"), ("<user>", "a<user><eos>")):
        closed = f"{{% if messages[1] %}}{{{{ messages[1].content | trim }}}}{ending}{{% endif %}}"
        other = Tokenizer(tokenizer.pipeline, tokenizer.settings, opening + closed)
        prompt, response = parts(load(section, other).example(0), other)
        assert (prompt, response.replace(" ", "")) == ("<user>q<assistant>", expected)


def test_empty_answers_are_left_out_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": answer} for i, answer in enumerate(["a", "", " \n", "b"])]
    source = load(jsonl(tmp_path / "a.jsonl", *rows), tokenizer)
    assert (len(source), source.empty, source.dropped) == (2, 2, 0)
    with pytest.raises(DataError, match="1 have an empty answer"):
        load(jsonl(tmp_path / "b.jsonl", rows[1]), tokenizer)


def test_compressed_files_are_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"question": "q0", "answer": "a"})
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": "q1", "answer": "a"}) + "\n")
    (tmp_path / "c.jsonl.bz2").write_bytes(bz2.compress(b'{"question": "q2", "answer": "a"}\n'))
    (tmp_path / "d.JSONL.xz").write_bytes(lzma.compress(b'{"question": "q3", "answer": "a"}\n'))
    (tmp_path / "e.ndjson").write_bytes(b'{"question": "q4", "answer": "a"}\n')
    (tmp_path / "._a.jsonl").write_bytes(b"\0 what a file system left")
    source = load(JsonlSection(source="jsonl", path=str(tmp_path)), tokenizer)
    read = {parts(source.example(i), tokenizer)[0] for i in range(len(source))}
    assert read == {f"<user>q{i}<assistant>" for i in range(5)}


def test_other_rows_have_another_fingerprint(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "abc"}, {"question": "r", "answer": "d"}]
    (tmp_path / "copy").mkdir()
    one = load(jsonl(tmp_path / "a.jsonl", *rows), tokenizer).fingerprint()
    assert load(jsonl(tmp_path / "copy" / "a.jsonl", *rows), tokenizer).fingerprint() == one
    rows[1]["answer"] = "e"
    assert load(jsonl(tmp_path / "b.jsonl", *rows), tokenizer).fingerprint() != one


def test_rows_kept_for_validation_are_not_trained_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    section = jsonl(tmp_path / "a.jsonl", *({"question": f"q{i}", "answer": "a"} for i in range(20)))
    source = load_conversations(section, tokenizer, 100, 3, validation_share=0.2)
    assert (len(source), source.held_out) == (16, 4)
    trained = {source.example(i) for i in range(16)}
    kept = {source.held_out_example(i) for i in range(4)}
    assert len(trained | kept) == 20
    again = load_conversations(section, tokenizer, 100, 3, validation_share=0.2)
    assert {again.held_out_example(i) for i in range(4)} == kept


def test_names_of_special_tokens_in_a_row_are_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("nano")
    assert tokenizer is not None
    rows = [{"question": "what is <|endoftext|>?", "answer": "<|mask|> is no <|endoftext|>"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = load_conversations(JsonlSection(source="jsonl", path=str(path)), tokenizer, 512, 0)
    ids = source.example(0).token_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.mask_token_id not in ids
    assert tokenizer.decode(ids) == "what is <|endoftext|>?<|mask|> is no <|endoftext|>"
