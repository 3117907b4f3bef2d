"""What docs/guides/your-own-model.md shows is run from its first line to its last, on tiny models and for two steps."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dmax.cli import app
from dmax.models import BlockDiffusionLM, Tokenizer, load_config, save_model
from dmax.models.config import ModelConfig
from dmax.models.transformer import initialize

pytest.importorskip("datasets")
gguf = pytest.importorskip("gguf")

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "your-own-model.md"
EOS = 2
SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip
SMALLER = {r"\bsteps: \d+": "steps: 2", r"--gen-length 512": "--gen-length 24", r"gen_length=512": "gen_length=24"}


@pytest.fixture
def models(tmp_path: Path, word_tokenizer: Callable[[str | None], Tokenizer], chat_template: str) -> dict[str, str]:
    """The names in the guide -> tiny models that often end their answers."""
    generator, tokenizer = torch.Generator().manual_seed(4), word_tokenizer(chat_template)
    ids = {"mask_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
    sdar = initialize(BlockDiffusionLM(ModelConfig(family="sdar", **ids, **SIZES)), generator)
    with torch.no_grad():
        sdar.lm_head.weight[EOS] *= 2.5
    save_model(sdar, tmp_path / "sdar", tokenizer=tokenizer)

    import transformers

    config = transformers.Qwen2Config(**SIZES, eos_token_id=EOS, pad_token_id=0, tie_word_embeddings=False)
    torch.manual_seed(4)
    qwen = transformers.Qwen2ForCausalLM(config)
    with torch.no_grad():
        qwen.lm_head.weight[EOS] *= 2.5
    qwen.save_pretrained(tmp_path / "qwen")
    tokenizer.save(tmp_path / "qwen")
    return {"JetLM/SDAR-1.7B-Chat": str(tmp_path / "sdar"), "Qwen/Qwen2.5-0.5B-Instruct": str(tmp_path / "qwen")}


def blocks(replaced: dict[str, str]) -> list[tuple[str, str]]:
    """The guide's examples, language and text, with what is in their place here."""
    text = GUIDE.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(found) > 10
    for pattern, smaller in {**{re.escape(name): path for name, path in replaced.items()}, **SMALLER}.items():
        assert any(re.search(pattern, example) for _, example in found), f"{pattern} is not in the guide"
        found = [(language, re.sub(pattern, smaller, example)) for language, example in found]
    return found


def test_the_guide_runs(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    write_gguf: Callable[[Path], None],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    questions = [{"prompt": f"w{3 + n} w{40 - n} w{n + 7}"} for n in range(24)]
    Path("questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions), encoding="utf-8")
    write_gguf(Path("model.gguf"))
    commands = 0
    for language, example in blocks(models):
        if language == "yaml":
            Path(example.split("\n")[0].removeprefix("# ")).write_text(example, encoding="utf-8")
        elif language == "python":
            exec(compile(example, str(GUIDE), "exec"), {})
            assert capsys.readouterr().out.strip()
        for line in example.splitlines() if language == "bash" else ():
            program, *arguments = shlex.split(line)
            if program == "pip":
                continue
            assert program == "dmax"
            result = CliRunner(env={"NO_COLOR": "1"}).invoke(app, arguments, catch_exceptions=False)
            assert result.exit_code == 0, f"{line}\n{result.stderr}"
            commands += 1
    assert commands > 10
    assert load_config("runs/adapted").block_length == 1
    manifest = json.loads(Path("runs/own-answers/manifest.json").read_text(encoding="utf-8"))
    assert manifest["params"]["block_length"] == 1, "the model's own answers, autoregressively"
    for run, family in (("sdar-oput", "sdar"), ("blocks", "Fast_dLLM_Qwen"), ("oput", "Fast_dLLM_Qwen")):
        config = load_config(f"runs/{run}/model")
        assert config.family == family


@pytest.fixture
def write_gguf() -> Callable[[Path], None]:
    """Write a tiny Llama with a byte-level tokenizer to a GGUF file."""

    def write(path: Path) -> None:
        from tokenizers.pre_tokenizers import ByteLevel

        texts = ["<pad>", "<x>", "<end>", *sorted(ByteLevel.alphabet())]
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_context_length(256)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(48)
        writer.add_head_count(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(texts)
        writer.add_token_types([3, 3, 3, *[1] * (len(texts) - 3)])
        writer.add_eos_token_id(2)
        generator = torch.Generator().manual_seed(1)
        shapes = {"token_embd": (len(texts), 32), "output_norm": (32,)}
        shapes |= {f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,), "blk.0.ffn_down": (32, 48)}
        shapes |= {"blk.0.ffn_gate": (48, 32), "blk.0.ffn_up": (48, 32)}
        for name, shape in shapes.items():
            writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write
