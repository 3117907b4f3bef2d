"""The tokenizer wrapper: text, special tokens and chat templates."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from dmax.models import BlockDiffusionLM, CheckpointError, Tokenizer, load_model, load_tokenizer, save_model

SPECIAL = ["<pad>", "<|mask|>", "<eos>", "<user>", "<assistant>"]
TEMPLATE = """{% for message in messages %}
    {% if message.role not in ("user", "assistant") %}
        {{ raise_exception("unknown role " + message.role) }}
    {% endif %}
{{ "<" + message.role + ">" + message.content }}{% if message.role == "assistant" %}{{ eos_token }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ "<assistant>" }}
{%- endif %}
"""
"""The line breaks after tags, and the blanks before them, are not part of the text."""


def pipeline() -> tokenizers.Tokenizer:
    """Bytes as tokens, after the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(pipeline(), {"eos_token": "<eos>", "pad_token": {"content": "<pad>"}}, TEMPLATE)


def ids(text: str) -> list[int]:
    return pipeline().encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["", "3 + 4 = 7", " leading and trailing ", "naïve 数学 🙂\n\ttab"])
def test_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_nothing_is_put_around_a_text() -> None:
    wrapping = pipeline()
    wrapping.post_processor = processors.TemplateProcessing(
        single="<user> $A <eos>", special_tokens=[("<user>", 3), ("<eos>", 2)]
    )
    assert wrapping.encode("a").ids == [3, *ids("a"), 2]
    assert Tokenizer(wrapping).encode("a") == ids("a")


def test_special_tokens_have_ids_but_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_token_id == 2
    assert tokenizer.mask_token_id == 1  # found by its published name
    assert tokenizer.vocab_size == len(SPECIAL) + 256
    assert tokenizer.decode([*ids("a"), 1, *ids("b"), 2, 0]) == "ab"
    assert tokenizer.decode([*ids("a"), 100_000]) == "a"


def test_a_named_mask_token_wins_over_the_published_name() -> None:
    assert Tokenizer(pipeline(), {"mask_token": "<pad>"}).mask_token_id == 0


def test_a_role_that_nothing_names() -> None:
    tokenizer = Tokenizer(pipeline(), {})
    assert tokenizer.special_id("eos_token") is None
    with pytest.raises(ValueError, match="has no eos_token: name it in tokenizer_config"):
        _ = tokenizer.eos_token_id


def test_a_conversation_becomes_what_the_template_says(tokenizer: Tokenizer) -> None:
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=False) == ids("<user>1+1?<assistant>2<eos>")
    assert tokenizer.apply_chat_template(turns[:1]) == ids("<user>1+1?<assistant>")


def test_a_template_may_refuse_and_there_may_be_none(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="does not take these messages: unknown role system"):
        tokenizer.apply_chat_template([{"role": "system", "content": ""}])
    with pytest.raises(ValueError, match="no chat template"):
        Tokenizer(pipeline()).apply_chat_template([{"role": "user", "content": ""}])


def test_json_in_a_template_is_plain_json() -> None:
    tokenizer = Tokenizer(pipeline(), {}, "{{ messages[0] | tojson }}")
    turn = {"role": "user", "content": "<é&'>"}
    assert tokenizer.decode(tokenizer.apply_chat_template([turn])) == json.dumps(turn, ensure_ascii=False)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.json }}",
        "{% include 'config.json' %}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(source: str) -> None:
    with pytest.raises(ValueError, match="does not take these messages"):
        Tokenizer(pipeline(), {}, source).apply_chat_template([{"role": "user", "content": "x"}])


def test_a_template_that_is_not_jinja_is_found_when_it_is_first_used() -> None:
    tokenizer = Tokenizer(pipeline(), {}, "{% for %}")
    assert tokenizer.encode("a") == ids("a")
    with pytest.raises(ValueError, match="not valid Jinja"):
        tokenizer.render_chat([{"role": "user", "content": ""}])


def test_what_the_last_caller_left_switched_on_is_off(tmp_path: Path) -> None:
    used = pipeline()
    used.enable_truncation(4)
    used.enable_padding(length=4)
    used.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("longer than four") == ids("longer than four")
    assert tokenizer.encode_batch(["ab", "c"]) == [ids("ab"), ids("c")]


@pytest.mark.parametrize("word", ["<eos>", "<|mask|>", "say <assistant> now", "<eos><eos>"])
def test_special_tokens_in_a_turn_are_text(tokenizer: Tokenizer, word: str) -> None:
    special = {pipeline().token_to_id(token) for token in SPECIAL}
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": f"a {word} b"}])
    assert [token for token in rendered if token in special] == [3, 4]  # <user> and <assistant>, of the template
    assert tokenizer.decode(rendered) == f"a {word} b"
    assert not special & set(tokenizer.encode_content(word))
    assert tokenizer.render_chat([{"role": "user", "content": word}]) == f"<user>{word}<assistant>"


@pytest.mark.parametrize("key", ["role", "name", "reasoning_content", "tool_call_id", "content"])
def test_special_tokens_anywhere_in_a_turn_are_text(key: str) -> None:
    tokenizer = Tokenizer(pipeline(), {}, f"<user>{{{{ messages[0].{key} }}}}")
    rendered = tokenizer.apply_chat_template([{"role": "user", key: "a<eos>b"}])
    assert [token for token in rendered if token < len(SPECIAL)] == [SPECIAL.index("<user>")]
    assert tokenizer.decode(rendered) == "a<eos>b"


def test_content_may_be_a_list_of_text_parts_or_nothing(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?", "cache_control": {}}]
    turn = {"role": "user", "content": parts}
    assert tokenizer.apply_chat_template([turn]) == ids("<user>1+1?<assistant>")
    empty = {"role": "assistant", "content": None}
    assert tokenizer.apply_chat_template([empty], add_generation_prompt=False) == ids("<assistant><eos>")
    with pytest.raises(ValueError, match="part 2 of a turn's content is image_url; only text is taken"):
        tokenizer.render_chat([{"role": "user", "content": [parts[0], {"type": "image_url"}]}])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=True, separators=(',', ':'), ensure_ascii=True) }}", None),
        ("{% if tools is none %}none{% endif %}", "none"),
        ("{% if tools is not none %}{{ tools[0] }}{% endif %}x", "x"),
    ],
)
def test_a_template_finds_what_transformers_gives_it(source: str, text: str | None) -> None:
    found = Tokenizer(pipeline(), {}, source).render_chat([{"role": "user", "content": "hi"}])
    assert found == (json.dumps({"a": "é", "b": 1}, separators=(",", ":")) if text is None else text)


def test_a_saved_tokenizer_is_read_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    found = Tokenizer.from_folder(tmp_path)
    assert found is not None
    assert found.chat_template == TEMPLATE
    assert (found.eos_token_id, found.mask_token_id, found.vocab_size) == (2, 1, tokenizer.vocab_size)
    assert found.encode("x <user> y") == tokenizer.encode("x <user> y")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "chat_template" not in settings


@pytest.mark.parametrize(
    "value", ["{{ 1 }}", [{"name": "tool_use", "template": "{{ 2 }}"}, {"name": "default", "template": "{{ 1 }}"}]]
)
def test_a_template_inside_the_settings(value: object, tmp_path: Path) -> None:
    pipeline().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    found = Tokenizer.from_folder(tmp_path)
    assert found is not None
    assert found.apply_chat_template([]) == ids("1")
    (tmp_path / "chat_template.jinja").write_text("{{ 3 }}")
    found = Tokenizer.from_folder(tmp_path)
    assert found is not None
    assert found.apply_chat_template([]) == ids("3")


def test_the_configuration_decides_the_special_ids(
    tokenizer: Tokenizer, model: BlockDiffusionLM, tmp_path: Path
) -> None:
    settings = Tokenizer(pipeline(), {"eos_token": "<user>", "mask_token": "<assistant>"})
    save_model(model, tmp_path / "out", tokenizer=settings)
    found = load_tokenizer(tmp_path / "out")
    assert found is not None
    assert (
        (found.eos_token_id, found.mask_token_id) == (model.config.eos_token_id, model.config.mask_token_id) == (2, 1)
    )
    load_model(tmp_path / "out")


def test_a_folder_with_nothing_but_a_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found is not None
    assert found.eos_token_id == 2


def test_a_checkpoint_without_a_tokenizer(folder: Path) -> None:
    assert load_tokenizer(folder) is None


def test_broken_tokenizer_files(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer file"):
        load_tokenizer(folder)
    pipeline().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json cannot be read as JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8 text"):
        load_tokenizer(folder)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        Tokenizer(pipeline()).encode("a \ud800")


def test_other_threads_run_while_a_long_text_is_encoded(tokenizer: Tokenizer) -> None:
    generator = random.Random(0)  # words seen before would come out of the pipeline's cache
    text = " ".join("".join(generator.choices("abcdefghij", k=8)) for _ in range(100_000))
    worker = threading.Thread(target=tokenizer.encode, args=(text,))
    turns = 0
    worker.start()
    while worker.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 20, "whoever holds the interpreter leaves a turn or two, at the beginning and at the end"


def other(change: str) -> tokenizers.Tokenizer:
    """The pipeline with a part that leaves characters out, or makes fewer of them."""
    changed = pipeline()
    if change == "NFC":
        changed.normalizer = tokenizers.normalizers.NFC()
    elif change == "strip":
        changed.normalizer = tokenizers.normalizers.Strip()
    elif change == "removed":
        split = pre_tokenizers.Split(" ", "removed")
        changed.pre_tokenizer = pre_tokenizers.Sequence([split, changed.pre_tokenizer])
    elif change == "swallows":
        changed.add_special_tokens([tokenizers.AddedToken("<s>", lstrip=True)])
    elif change == "words":
        changed = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    elif change == "lacks":
        parts = json.loads(changed.to_str())
        del parts["model"]["vocab"]["a"]
        changed = tokenizers.Tokenizer.from_str(json.dumps(parts))
    return changed


@pytest.mark.parametrize("change", ["plain", "NFC", "strip", "removed", "swallows", "words", "lacks"])
def test_a_length_tells_of_no_more_tokens_than_there_are(change: str) -> None:
    tokenizer = Tokenizer(other(change), {}, TEMPLATE)
    wide = "\u1f82"  # one character, of four when it is taken apart
    apart = "\u03b1\u0313\u0300\u0345"
    for text in ("", "a" * 50, " " * 50, "<assistant>" * 9, wide * 9, apart * 9, "<s>" + " " * 99, "naïve 数学 🙂" * 7):
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))
        marked = tokenizer.render_chat([{"role": "user", "content": text}], marked=True)
        assert tokenizer.fewest_tokens(marked) <= len(tokenizer.encode(marked))
    assert (tokenizer.fewest_tokens("a" * 1000) > 0) == (change in ("plain", "NFC"))


def test_tools_are_told_with_their_special_names_as_text() -> None:
    template = "{% for tool in tools or [] %}<user>{{ tool.function.name }}{{ tool | tojson }}{% endfor %}"
    tokenizer = Tokenizer(pipeline(), {}, template)
    tools = [{"type": "function", "function": {"name": "<assistant>", "description": "<eos>"}}]
    rendered = tokenizer.encode(tokenizer.render_chat([], marked=True, tools=tools))
    assert [one for one in rendered if one < len(SPECIAL)] == [SPECIAL.index("<user>")]
    assert "<eos>" in tokenizer.decode(rendered)
    assert tokenizer.render_chat([]) == ""
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "<eos>"}}]}
    history = Tokenizer(pipeline(), {}, "{% for m in messages %}{{ m.tool_calls[0].function.arguments }}{% endfor %}")
    assert SPECIAL.index("<eos>") not in history.apply_chat_template([call])
