"""Autoregressive checkpoints, as transformers and llama.cpp's tools write them, become ones of block diffusion."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner, Result

from dmax import LLM, GenerationParams
from dmax.cli import app
from dmax.models import Tokenizer, load_config, load_tokenizer
from dmax.models.adapt import adapt_checkpoint
from dmax.models.autoregressive import FolderSource
from dmax.models.gguf_source import GgufSource

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

EOS, VOCAB = 1, 288
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "initializer_range": 0.15,
    "eos_token_id": EOS, "bos_token_id": 0, "pad_token_id": 0, "rms_norm_eps": 1e-5,
}  # fmt: skip
KINDS = ("Qwen2", "Qwen3", "Llama")
FAMILIES = {"Qwen2": ("Fast_dLLM_Qwen", "a2d-qwen2"), "Qwen3": ("a2d-qwen3",) * 2, "Llama": ("a2d-llama",) * 2}
"""Shifted, and not."""
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def byte_level(*special: str) -> Tokenizer:
    """Bytes, two special tokens and a few merges."""
    pipeline = tokenizers.Tokenizer(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 8, special_tokens=["<pad>", "<end>", *special], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    pipeline.train_from_iterator(["how many apples has Anna, and how many has Ben?"] * 5, trainer)
    return Tokenizer(pipeline, {"eos_token": "<end>"}, TEMPLATE)


def model_of(kind: str, **changes: Any) -> Any:
    """A random model of transformers."""
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    torch.manual_seed(7)
    model = getattr(transformers, f"{kind}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.1)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    return model


Save = Callable[..., tuple[Path, Any]]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A kind, a tokenizer, and changes to the configuration -> a folder, and the model in it."""

    def write(kind: str, tokenizer: Tokenizer | None = None, shard: str = "1GB", **changes: Any) -> tuple[Path, Any]:
        model = model_of(kind, **changes)
        model.save_pretrained(tmp_path / "source", max_shard_size=shard)
        (byte_level() if tokenizer is None else tokenizer).save(tmp_path / "source")
        return tmp_path / "source", model

    return write


def dmax(*arguments: object) -> Result:
    runner = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "100"})
    return runner.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def adapt(*arguments: object) -> None:
    result = dmax("adapt", *arguments)
    assert result.exit_code == 0, result.stderr


def refusal(*arguments: object) -> str:
    result = dmax("adapt", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ")


def assert_autoregressive(folder: Path, theirs: Any) -> None:
    """Decoded as it stands, the checkpoint gives what transformers generates greedily."""
    llm, lengths = LLM(str(folder)), set()
    for length in (1, 5, 16):
        generator = torch.Generator().manual_seed(length)
        prompt = torch.randint(3, VOCAB - 8, (1, length), generator=generator)
        expected = theirs.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=EOS, pad_token_id=0)
        [answer] = llm.generate(prompt[0].tolist(), GenerationParams(gen_length=24))
        assert (answer.decoder, answer.params["block_length"]) == ("threshold", 1)
        assert answer.token_ids == expected[0, length:].tolist()
        lengths.add(len(answer.token_ids))
    assert max(lengths) > 8, "or little is compared"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_blocks_of_one_are_the_autoregressive_model(save: Save, kind: str, tied: bool, tmp_path: Path) -> None:
    source, theirs = save(kind, shard="60KB", tie_word_embeddings=tied)
    assert len(list(source.glob("*.safetensors"))) > 1
    adapt(source, tmp_path / "out")
    assert load_config(tmp_path / "out").family == FAMILIES[kind][0]
    assert_autoregressive(tmp_path / "out", theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_may_be_read_at_their_own_positions(save: Save, kind: str, tmp_path: Path) -> None:
    source, _ = save(kind)
    adapt(source, tmp_path / "out", "--unshifted", "--block-length", "8")
    config = load_config(tmp_path / "out")
    assert (config.family, config.shift_logits, config.block_length) == (FAMILIES[kind][1], False, 8)
    [answer] = LLM(str(tmp_path / "out")).generate([5, 6], GenerationParams(gen_length=8))
    assert answer.params["block_length"] == 8


def test_every_weight_is_the_sources(save: Save, tmp_path: Path) -> None:
    source, _ = save("Qwen2", dtype=torch.bfloat16)
    adapt(source, tmp_path / "out", "--dtype", "bfloat16")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        tensor = tensor.bfloat16()
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            mask = after[name][VOCAB - 8]
            torch.testing.assert_close(mask.float(), before[name].double().mean(0).float(), rtol=1e-2, atol=1e-4)
            tensor[VOCAB - 8] = mask
        assert torch.equal(after[name], tensor)


MASKS: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...], str, int, int]] = {
    "a row that the tokenizer leaves free": ((), {}, (), "<|mask|>", VOCAB - 8, VOCAB),
    "one row more": ((), {"vocab_size": VOCAB - 8}, (), "<|mask|>", VOCAB - 8, VOCAB - 7),
    "a reserved token": (("<|x|>", "<|reserved_7|>"), {}, (), "<|reserved_7|>", 3, VOCAB),
    "a token that was asked for": (("<|x|>", "<|reserved_7|>"), {}, ("--mask-token", "<|x|>"), "<|x|>", 2, VOCAB),
    "a new name": ((), {}, ("--mask-token", "<hole>"), "<hole>", VOCAB - 8, VOCAB),
}


@pytest.mark.parametrize(("special", "changes", "options", "text", "index", "rows"), MASKS.values(), ids=MASKS.keys())
def test_a_mask_token_is_found(
    save: Save, special: Sequence[str], changes: dict[str, Any], options: Sequence[str], text: str, index: int,
    rows: int, tmp_path: Path,
) -> None:  # fmt: skip
    source, theirs = save("Llama", byte_level(*special), **changes)
    adapt(source, tmp_path / "out", *options)
    config, tokenizer = load_config(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    assert tokenizer is not None
    assert (config.mask_token_id, config.vocab_size) == (tokenizer.mask_token_id, rows) == (index, rows)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (again.mask_token, again.mask_token_id) == (text, index)
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "user: hi\nassistant:"
    if not special:
        assert_autoregressive(tmp_path / "out", theirs)


def test_all_ends_are_kept(save: Save, tmp_path: Path) -> None:
    source, _ = save("Qwen3")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, EOS]}))
    adapt(source, tmp_path / "out")
    assert load_config(tmp_path / "out").eos_token_ids == (5, EOS)


def test_an_interrupted_one_goes_on(save: Save, tmp_path: Path) -> None:
    source, _ = save("Qwen2")

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt_checkpoint(source, tmp_path / "out", max_shard_bytes=50_000, progress=stop)
    assert not (tmp_path / "out").exists()
    [kept] = tmp_path.glob(".out.partial")
    times = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.safetensors")}
    assert times
    adapt_checkpoint(source, tmp_path / "out", max_shard_bytes=50_000)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in times.items())
    adapt_checkpoint(source, tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    shards = {k: v for path in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(path).items()}
    assert whole.keys() == shards.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in shards.items())


def test_some_rows_are_read_at_a_time(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = save("Llama")
    sizes, read = [], FolderSource.read

    def measured(self: FolderSource, name: str, first: int, end: int) -> torch.Tensor:
        sizes.append(read(self, name, first, end).numel())
        return read(self, name, first, end)

    monkeypatch.setattr(FolderSource, "read", measured)
    monkeypatch.setattr("dmax.models.adapt._TASK", 200)
    adapt_checkpoint(source, tmp_path / "out")
    assert max(sizes) == 192  # three rows of 64


def test_ctrl_c_says_that_the_same_command_goes_on(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = save("Llama")

    def interrupted(*_: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderSource, "read", interrupted)
    result = dmax("adapt", source, tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr == "Stopped; the same command goes on from here.\n"
    assert not (tmp_path / "out").exists()


def test_nothing_that_a_checkpoint_ships_is_run(save: Save, tmp_path: Path) -> None:
    source, _ = save("Llama")
    (source / "modeling_llama.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((source / name).read_text())
        values["auto_map"] = {"AutoModelForCausalLM": "modeling_llama.Model", "AutoTokenizer": "modeling_llama.T"}
        (source / name).write_text(json.dumps(values))
    adapt(source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "out").glob("*.py"))


def write_gguf(
    path: Path, model: Any, tokenizer: Tokenizer, packed: Any = gguf.GGMLQuantizationType.F32, **fields: Any
) -> Path:
    """Write a model as ``convert_hf_to_gguf.py`` of llama.cpp does."""
    config = model.config
    kind = fields.pop("kind", config.model_type)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    pipeline = json.loads(tokenizer.pipeline.to_str())
    special = {token["content"] for token in pipeline["added_tokens"]}
    texts = sorted(pipeline["model"]["vocab"], key=pipeline["model"]["vocab"].get)
    writer.add_tokenizer_model(fields.pop("tokenizer_kind", "gpt2"))
    writer.add_tokenizer_pre(fields.pop("pre", "gpt-2"))
    writer.add_token_list(texts)
    writer.add_token_types([3 if text in special else 1 for text in texts])
    writer.add_token_merges([" ".join(pair) for pair in pipeline["model"]["merges"]])
    writer.add_eos_token_id(EOS)
    writer.add_chat_template(TEMPLATE)
    for key, value in fields.items():
        writer.add_uint32(key.replace("__", "."), value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float()
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = values.shape[0] // config.head_dim
            values = values.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        kept = gguf.GGMLQuantizationType.F32 if tensor.ndim == 1 else packed
        data = gguf.quants.quantize(np.ascontiguousarray(values.numpy()), kept)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data, raw_dtype=kept)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_the_autoregressive_model(kind: str, tied: bool, tmp_path: Path) -> None:
    model, tokenizer = model_of(kind, tie_word_embeddings=tied), byte_level()
    adapt(write_gguf(tmp_path / "model.gguf", model, tokenizer), tmp_path / "out")
    assert load_config(tmp_path / "out").family == FAMILIES[kind][0]
    assert_autoregressive(tmp_path / "out", model)
    rebuilt = load_tokenizer(tmp_path / "out")
    assert rebuilt is not None
    for text in (
        "how many apples, 1234?",
        "Ännchen's\n\n  two  <end>",
        tokenizer.render_chat([{"role": "u", "content": "x"}]),
    ):
        assert rebuilt.encode(text) == tokenizer.encode(text)
        assert rebuilt.decode(rebuilt.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert rebuilt.chat_template == TEMPLATE


def test_llama_3s_stretched_rotary_embedding_is_recognised(tmp_path: Path) -> None:
    rotary = {"rope_theta": 500_000.0, **LLAMA3}
    model = model_of("Llama", rope_parameters=rotary)
    adapt(write_gguf(tmp_path / "model.gguf", model, byte_level()), tmp_path / "out")
    assert dict(load_config(tmp_path / "out").rope_scaling or {}) == LLAMA3
    assert_autoregressive(tmp_path / "out", model)
    model.model.rotary_emb.inv_freq *= 0.9
    stretched = write_gguf(tmp_path / "other.gguf", model, byte_level())
    assert "a table that is not Llama 3's" in refusal(stretched, tmp_path / "other")


@pytest.mark.parametrize(("packed", "dtype"), [("Q8_0", "F32"), ("Q4_1", "F32"), ("F16", "F16"), ("BF16", "BF16")])
def test_packed_weights_are_unpacked(packed: str, dtype: str, tmp_path: Path) -> None:
    model, kind = model_of("Llama"), gguf.GGMLQuantizationType[packed]
    path = write_gguf(tmp_path / "model.gguf", model, byte_level(), kind)
    assert {tensor.dtype for tensor in GgufSource(path).stored.values()} == {dtype}
    adapt(path, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 2 and "embed" not in name and "head" not in name:
            expected = gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind)
            assert torch.equal(written[name].float(), torch.from_numpy(np.array(expected, dtype=np.float32)))


NASTY = "It's 12345 apples—don't\n\n\n  THEY'LL cost €9.50?!  \t\x00日本 e\u0301  "


def test_texts_fall_into_words_as_they_should(tmp_path: Path) -> None:
    tokenizer, model = byte_level(), model_of("Qwen2")
    parsed = json.loads(tokenizer.pipeline.to_str())["model"]
    merges = [tuple(pair) for pair in parsed["merges"]]
    theirs = {
        "qwen2": transformers.Qwen2Tokenizer(vocab=parsed["vocab"], merges=merges),
        "gpt-2": transformers.GPT2Tokenizer(vocab=parsed["vocab"], merges=merges),
    }
    for pre, expected in theirs.items():
        path = write_gguf(tmp_path / f"{pre}.gguf", model, tokenizer, pre=pre)
        assert GgufSource(path).tokenizer().encode(NASTY) == expected(NASTY, add_special_tokens=False)["input_ids"]
    words = {
        "qwen2": ["It", "'s", "Ġ", "1", "2", "3", "4"], "llama-bpe": ["It", "'s", "Ġ", "123", "4"],
        "smollm": ["It", "'s", "Ġ", "1", "2", "3", "4"], "gpt-2": ["It", "'s", "Ġ1234"],
    }  # fmt: skip
    for pre, expected_words in words.items():
        pipeline = GgufSource(write_gguf(tmp_path / f"{pre}.gguf", model, tokenizer, pre=pre)).tokenizer().pipeline
        assert pipeline.pre_tokenizer is not None
        assert [word for word, _ in pipeline.pre_tokenizer.pre_tokenize_str("It's 1234")] == expected_words


def test_a_tokenizer_may_come_from_elsewhere(save: Save, tmp_path: Path) -> None:
    source, theirs = save("Llama")
    path = write_gguf(tmp_path / "model.gguf", theirs, byte_level(), tokenizer_kind="llama")
    assert "a tokenizer of kind llama, gpt-2" in refusal(path, tmp_path / "out")
    adapt(path, tmp_path / "out", "--tokenizer", source)
    assert_autoregressive(tmp_path / "out", theirs)
    assert "has no tokenizer.json: name a folder that has" in refusal(source, tmp_path / "o", "--tokenizer", tmp_path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"model_type": "gemma2"}, "model_type is 'gemma2'; llama, qwen2, qwen3 can be adapted."),
    "experts": ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'; llama"),
    "none": ({"model_type": None}, "model_type is None; llama"),
    "block diffusion": ({"model_type": "a2d-llama"}, "a block-diffusion model already: load it as it is"),
    "window": ({"use_sliding_window": True}, "use_sliding_window is True; only False is supported"),
    "no sizes": ({"vocab_size": None}, "lacks vocab_size"),
    "another vocabulary": ({"vocab_size": 300}, "embed_tokens.weight (is [288, 64], should be [300, 64])"),
    "other sizes": ({"intermediate_size": 32}, "do not fit its config.json. 6 of the wrong shape"),
    "packed by another tool": (
        {"intermediate_size": 32, "quantization_config": {"quant_method": "gptq"}},
        "quantised by gptq",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_configurations_that_cannot_be_adapted_say_why(
    save: Save, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source, _ = save("Llama")
    values = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps(values))
    assert message in refusal(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def test_files_that_cannot_be_adapted_say_why(save: Save, tmp_path: Path) -> None:
    source, theirs = save("Llama")
    out = tmp_path / "out"
    assert "--block-length is 0" in refusal(source, out, "--block-length", "0")
    assert "Mask token 'a' is an ordinary token" in refusal(source, out, "--mask-token", "a")
    assert "Mask token '<end>' ends answers" in refusal(source, out, "--mask-token", "<end>")
    for name, text, message in (
        ("tokenizer.json", POINTER, "is a Git LFS pointer, not the tokenizer: run `git lfs pull`"),
        ("tokenizer.json", None, "has no tokenizer.json: write one there by"),
        ("model.safetensors", POINTER, "is a Git LFS pointer, not the weights: run `git lfs pull`"),
        ("model.safetensors", None, "it has neither model.safetensors nor"),
    ):
        (source / name).unlink()
        if text is not None:
            (source / name).write_text(text)
        assert message in refusal(source, out)
    assert "There is no file" in refusal(tmp_path / "no.gguf", out)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.gguf").touch()
    assert "is a folder of GGUF files: name one of them (a.gguf)" in refusal(tmp_path / "files", out)
    (tmp_path / "pointer.gguf").write_text(POINTER)
    assert "is a Git LFS pointer" in refusal(tmp_path / "pointer.gguf", out)
    whole = write_gguf(tmp_path / "model.gguf", theirs, byte_level()).read_bytes()
    (tmp_path / "torn.gguf").write_bytes(whole[: len(whole) // 2])
    assert "is not a whole GGUF file" in refusal(tmp_path / "torn.gguf", out)
    (tmp_path / "text.gguf").write_text("no GGUF, this")
    assert "is not a whole GGUF file" in refusal(tmp_path / "text.gguf", out)
    for fields, message in (
        ({"kind": "gemma2"}, "a model of architecture 'gemma2'; llama, qwen2, qwen3 can be adapted"),
        ({"split__count": 2}, "is one of 2 parts"),
        ({"llama__expert_count": 8}, "a model with experts"),
        ({"llama__rope__dimension_count": 8}, "a part of each head"),
        ({"pre": "tekken"}, "a tokenizer of kind gpt2, tekken; only byte-level BPE"),
        ({"kind": "qwen3"}, "do not fit its metadata. 4 missing: model.layers.{0-1}.self_attn.q_norm.weight"),
    ):
        assert message in refusal(write_gguf(tmp_path / "other.gguf", theirs, byte_level(), **fields), out)
    assert not out.exists()


def test_without_the_gguf_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dmax.models.gguf_source", None)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    monkeypatch.delitem(__import__("sys").modules, "dmax.models.gguf_source")
    assert "pip install 'dmax-llm[gguf]'" in refusal(tmp_path / "model.gguf", tmp_path / "out")
