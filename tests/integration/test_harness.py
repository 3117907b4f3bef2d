"""The model ``dmax`` in the real lm-evaluation-harness, on tasks and data written here: nothing is fetched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from dmax import LLM, GenerationOutput, GenerationParams
from dmax.decoding import DecoderError
from dmax.engine import GenerationError

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.registry import Registry, get_model
from lm_eval.tasks import TaskManager

from dmax.evaluation.harness import DMaxLM, main
from dmax.evaluation.harness_arguments import HarnessError

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "tests" / "golden" / "data" / "trained-dense"
TEMPLATE = (
    "{% for m in messages %}{{ '<bot>' if m.role == 'assistant' else '<user>' }}{{ m.content }}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
QUESTIONS = ["Sam has 3 bags of 14 marbles.", "A box holds 12 eggs.", "Tea has 3 calories. Ann drinks 6 cups."]
ROWS = [{"question": text, "answer": f"Some steps.\n#### {number}"} for number, text in enumerate(QUESTIONS)]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: test
fewshot_config: {{sampler: first_n}}
output_type: generate_until
doc_to_text: "{text}"
doc_to_target: "{{{{answer.split('#### ')[-1]}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["<user>", ""], do_sample: false, max_gen_toks: 32}}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: '#### (\\-?[0-9\\.\\,]+)'}}
      - {{function: take_first}}
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: '(\\-?[0-9\\.\\,]+)'}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
REAL = """
include: {definition}
task: {name}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: {data}, test: {data}}}, cache_dir: {cache}}}
"""
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained golden checkpoint, with a chat template beside it."""
    folder = tmp_path_factory.mktemp("model")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(WEIGHTS / name, folder / name)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<eos>", "mask_token": "<mask>"}')
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks: ``raw``, ``chat`` and ``prefixed`` (whose answers are begun) generate, ``choice`` does not.

    ``real-…`` are the harness' own definitions of GSM8K over the rows here.
    """
    folder = tmp_path_factory.mktemp("tasks")
    data, cache = folder / "rows.jsonl", folder / "cache"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    chat = TASK.format(name="chat", data=data, cache=cache, text="{{question}}")
    (folder / "chat.yaml").write_text(chat)
    (folder / "prefixed.yaml").write_text(chat.replace("task: chat", "task: prefixed") + 'gen_prefix: "Well, 2"\n')
    (folder / "raw.yaml").write_text(TASK.format(name="raw", data=data, cache=cache, text="<user>{{question}}<bot>"))
    (folder / "choice.yaml").write_text(CHOICE.format(data=data, cache=cache))
    for name in ("gsm8k", "gsm8k-cot-llama"):
        definition = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / f"{name}.yaml"
        real = REAL.format(definition=definition, name=f"real-{name}", data=data, cache=cache)
        (folder / f"real-{name}.yaml").write_text(real)
    return folder


@pytest.fixture(scope="module")
def evaluate(tasks: Path) -> Iterator[Callable[..., Any]]:
    """A task's name, and arguments of ``simple_evaluate`` -> its results."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def run(task: str, **arguments: Any) -> Any:
        return lm_eval.simple_evaluate(tasks=[task], task_manager=manager, bootstrap_iters=0, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        # It asks pip and the operating system for all they have, for seconds.
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
        yield run


@pytest.fixture(scope="module")
def raw_run(
    evaluate: Callable[..., Any], model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, list[dict[str, Any]], str]:
    """One evaluation of ``raw``: its results, the lines of its statistics, and the path of its cache."""
    folder = tmp_path_factory.mktemp("run")
    cache, stats = folder / "cache", folder / "stats.jsonl"
    model_args = f"pretrained={model},threshold=0.6,dtype=float32,stats={stats}"
    results = evaluate("raw", model="dmax", model_args=model_args, batch_size=2, use_cache=str(cache))
    return results, [json.loads(line) for line in stats.read_text().splitlines()], str(cache)


class Recorder:
    """Stands in for the engine: keeps the params it is given and answers at once."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.params: list[GenerationParams] = []
        self.batches: list[int] = []

    def __call__(self, prompts: list[list[int]], params: Sequence[GenerationParams]) -> list[GenerationOutput]:
        self.prompts += prompts
        self.params += params
        self.batches.append(len(prompts))
        fields = dict.fromkeys(GenerationOutput.__dataclass_fields__)
        counts = {"num_tokens": 6, "nfe": 3, "tpf": 2.0}
        return [
            GenerationOutput(**{**fields, **counts, "text": f"answer {row.seed}"})  # type: ignore[arg-type]
            for row in params
        ]


@pytest.fixture
def recorded(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[DMaxLM, Recorder]]:
    """Model arguments -> a model whose engine is recorded."""

    def build(**model_args: Any) -> tuple[DMaxLM, Recorder]:
        lm = DMaxLM(str(model), **model_args)
        recorder = Recorder()
        monkeypatch.setattr(lm.llm, "generate", recorder)
        return lm, recorder

    return build


def request(context: str = "<user>Hello<bot>", doc_id: int = 0, repeats: int = 1, **settings: Any) -> Instance:
    return Instance("generate_until", {}, (context, settings), 0, ("task", doc_id, repeats))


def test_answers_are_the_engines_in_order(raw_run: tuple[Any, list[dict[str, Any]], str], model: Path) -> None:
    results, _, _ = raw_run
    params = GenerationParams(threshold=0.6, gen_length=32, stop=("<user>",))
    rows = [replace(params, seed=row) for row in range(len(ROWS))]
    expected = LLM(model).generate([f"<user>{question}<bot>" for question in QUESTIONS], rows)
    samples = [sample for sample in results["samples"]["raw"] if sample["filter"] == "strict-match"]
    assert [sample["resps"] for sample in samples] == [[[output.text]] for output in expected]
    assert len({output.text for output in expected}) == len(ROWS)


def test_filters_and_metrics_see_the_answers(raw_run: tuple[Any, list[dict[str, Any]], str]) -> None:
    results, _, _ = raw_run
    for kind in ("strict-match", "flexible-extract"):
        samples = [sample for sample in results["samples"]["raw"] if sample["filter"] == kind]
        right = [sample["filtered_resps"] == [sample["target"]] for sample in samples]
        assert results["results"]["raw"][f"exact_match,{kind}"] == sum(right) / len(ROWS)


def test_costs_go_to_the_statistics_and_the_results(raw_run: tuple[Any, list[dict[str, Any]], str]) -> None:
    results, stats, _ = raw_run
    assert [(line["task"], line["doc_id"], line["repeat"]) for line in stats] == [("raw", row, 0) for row in range(3)]
    for line in stats:
        assert line["tpf"] == line["num_tokens"] / line["nfe"]
        assert line["tps"] > 0
        assert line["passes"] <= line["nfe"] <= line["passes"] + 1
        assert line["finish_reason"] in ("stop", "length")
        assert line["prompt_tokens_cut"] == 0 < line["prompt_tokens"]
        assert line["params"]["threshold"] == 0.6
    config = results["config"]["dmax"]
    assert config["cost"]["raw"] == {
        "answers": 3,
        "num_tokens": sum(line["num_tokens"] for line in stats),
        "nfe": sum(line["nfe"] for line in stats),
        "tpf_mean": pytest.approx(sum(line["tpf"] for line in stats) / 3),
        "tpf_pooled": pytest.approx(sum(line["num_tokens"] for line in stats) / sum(line["nfe"] for line in stats)),
    }
    assert (config["decoder"], config["decoder_options"]["threshold"], config["batch_size"]) == (
        "soft-parallel",
        0.6,
        2,
    )
    assert config["decoder_options"]["acceptance_threshold"] == 0.9
    json.dumps(config)


def test_cached_answers_are_not_decoded_again(
    raw_run: tuple[Any, list[dict[str, Any]], str],
    evaluate: Callable[..., Any],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results, _, cache = raw_run
    monkeypatch.setattr(LLM, "generate", lambda *_, **__: pytest.fail("decoding began"))
    again = evaluate("raw", model="dmax", model_args={"pretrained": str(model)}, use_cache=cache)
    assert again["samples"]["raw"] == results["samples"]["raw"]
    assert again["config"]["dmax"]["cost"] == {}


def test_answers_reach_the_cache_batch_by_batch(recorded: Callable[..., tuple[DMaxLM, Recorder]]) -> None:
    lm, recorder = recorded(batch_size=1)
    kept: list[Any] = []

    class Hook:
        def add_partial(self, *entry: Any) -> None:
            if len(kept) == 2:
                raise KeyboardInterrupt
            kept.append(entry)

    lm.set_cache_hook(Hook())  # type: ignore[arg-type]
    requests = [request(doc_id=row) for row in range(5)]
    with pytest.raises(KeyboardInterrupt):
        lm.generate_until(requests, disable_tqdm=True)
    assert kept == [("generate_until", requests[row].args, f"answer {row}") for row in range(2)]
    assert len(recorder.params) == 3


def test_chat_template_spells_out_the_few_shots(evaluate: Callable[..., Any], recorded: Callable[..., Any]) -> None:
    lm, _ = recorded()
    multiturn = evaluate("chat", model=lm, apply_chat_template=True, fewshot_as_multiturn=True, num_fewshot=1, limit=2)
    assert [sample["arguments"][0][0] for sample in multiturn["samples"]["chat"][:2]] == [
        f"<user>{QUESTIONS[1]}<bot>1<eos><user>{QUESTIONS[0]}<bot>",  # an example is never the question itself
        f"<user>{QUESTIONS[0]}<bot>0<eos><user>{QUESTIONS[1]}<bot>",
    ]
    single = evaluate("chat", model=lm, apply_chat_template=True, fewshot_as_multiturn=False, num_fewshot=1, limit=1)
    assert single["samples"]["chat"][0]["arguments"][0][0] == f"<user>{QUESTIONS[1]}1\n\n{QUESTIONS[0]}<bot>"


def test_prompt_is_raw_text_without_chat_template(evaluate: Callable[..., Any], recorded: Callable[..., Any]) -> None:
    lm, recorder = recorded()
    evaluate("chat", model=lm, limit=1)
    assert recorder.prompts == [lm.llm.tokenizer.encode(QUESTIONS[0])]


def test_answer_goes_on_from_a_prefix(evaluate: Callable[..., Any], recorded: Callable[..., Any]) -> None:
    lm, recorder = recorded()
    evaluate("prefixed", model=lm, apply_chat_template=True, limit=1)
    assert recorder.prompts == [lm.llm.tokenizer.encode(f"<user>{QUESTIONS[0]}<bot>Well, 2")]


def test_chat_prompt_has_the_ids_of_the_template(recorded: Callable[..., tuple[DMaxLM, Recorder]]) -> None:
    lm, _ = recorded()
    tokenizer = lm.llm.tokenizer
    assert tokenizer is not None
    messages = [{"role": "user", "content": "12 naïve  eggs\n\tcost — €3? <eos>"}]
    assert tokenizer.encode(lm.apply_chat_template(messages)) == tokenizer.apply_chat_template(messages)
    assert lm.chat_template(True) == TEMPLATE
    assert lm.tokenizer_name.endswith(Path(lm.tokenizer_name.replace("__", "/")).name)
    with pytest.raises(HarnessError, match=r"no chat template 'tool_use'; give --apply_chat_template without a name"):
        lm.chat_template("tool_use")


@pytest.mark.parametrize(
    ("settings", "temperature", "gen_length", "stop"),
    [
        ({}, 0.0, 77, ()),
        ({"until": "Q:", "max_gen_toks": 9}, 0.0, 9, ("Q:",)),
        ({"until": ["\n\n", ""], "max_new_tokens": 8}, 0.0, 8, ("\n\n",)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, 0.0, 77, ()),
        ({"do_sample": True, "temperature": 0.7}, 0.7, 77, ()),
        ({"temperature": 0.7}, 0.7, 77, ()),
        ({"do_sample": True}, 1.0, 77, ()),
    ],
)
def test_generation_settings_of_a_task(
    settings: dict[str, Any], temperature: float, gen_length: int, stop: tuple[str, ...], recorded: Callable[..., Any]
) -> None:
    lm, recorder = recorded(max_gen_toks=77, threshold=0.3, block_length=16)
    lm.generate_until([request(**settings)], disable_tqdm=True)
    expected = GenerationParams(
        threshold=0.3, block_length=16, temperature=temperature, gen_length=gen_length, stop=stop
    )
    assert recorder.params == [expected]


def test_temperature_of_the_model_is_for_tasks_that_set_none(recorded: Callable[..., Any]) -> None:
    lm, recorder = recorded(temperature=0.5)
    requests = [request(), request(do_sample=True), request(do_sample=True, temperature=0.2), request(do_sample=False)]
    lm.generate_until(requests, disable_tqdm=True)
    assert [params.temperature for params in recorder.params] == [0.5, 0.5, 0.2, 0.0]


def test_settings_without_effect_here_are_named(recorded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lm, _ = recorded()
    said: list[str] = []
    monkeypatch.setattr("dmax.evaluation.harness.warning_once", lambda _, text: said.append(text))
    lm.generate_until([request(do_sample=True, top_p=0.9), request(top_p=0.9), request(num_beams=2)], disable_tqdm=True)
    assert said == [
        f"This model has no generation setting {name}; going on without." for name in ("top_p", "num_beams")
    ]


def test_seed_depends_on_the_document_and_the_repeat(recorded: Callable[..., Any]) -> None:
    lm, recorder = recorded(seed=100, batch_size=3)
    first, last = request(doc_id=0, repeats=2), request(doc_id=7, repeats=2)
    assert lm.generate_until([first, first, last, last], disable_tqdm=True) == [
        "answer 100", "answer 101", "answer 114", "answer 115"
    ]  # fmt: skip
    assert recorder.batches == [3, 1]
    assert lm.generate_until([last], disable_tqdm=True) == ["answer 114"]


def test_long_prompts_lose_their_beginning(recorded: Callable[..., Any]) -> None:
    lm, recorder = recorded(gen_length=1000)
    text = " ".join(str(number) for number in range(100))
    lm.generate_until([request(text)], disable_tqdm=True)
    assert recorder.prompts == [lm.llm.tokenizer.encode(text)[-24:]]
    with pytest.raises(HarnessError, match=r"max_gen_toks is 1024, which leaves no room .* 1024 positions; lower it"):
        lm.generate_until([request(text, max_gen_toks=1024)], disable_tqdm=True)


def test_likelihoods_are_refused(evaluate: Callable[..., Any], recorded: Callable[..., Any]) -> None:
    lm, _ = recorded()
    with pytest.raises(HarnessError, match="choice asks for log-likelihoods, which are not supported for this model"):
        evaluate("choice", model=lm)
    rolling = Instance("loglikelihood_rolling", {}, ("text",), 0, ("wikitext", 0, 1))
    with pytest.raises(HarnessError, match=r"wikitext asks .* no exact left-to-right likelihood; .* generate_until"):
        lm.loglikelihood_rolling([rolling])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"treshold": 0.5}, HarnessError, "no model argument 'treshold'; did you mean 'threshold'"),
        ({"decoder": "fixed-steps", "step": 4}, HarnessError, "no model argument 'step'; did you mean 'steps'"),
        ({"decoder": "treshold"}, DecoderError, "did you mean 'threshold'"),
        ({"decoder": "fixed-steps", "threshold": 0.5}, DecoderError, "no option 'threshold'"),
        ({"threshold": 2}, GenerationError, "threshold is 2"),
        ({"gen_length": 8, "max_gen_toks": 8}, HarnessError, "two names of the same thing"),
        ({"dtype": "int8"}, HarnessError, "dtype is 'int8'; it must be one of auto, float32"),
        ({"device": "cdua"}, HarnessError, "device is 'cdua'"),
        ({"batch_size": 0}, HarnessError, "batch_size is 0"),
        ({"batch_size": "many"}, HarnessError, "batch_size is 'many'"),
        ({"stats": "no/such/folder.jsonl"}, HarnessError, "folder does not exist"),
        ({"stats": __file__}, HarnessError, "exists already"),
        ({"pretrained": ""}, HarnessError, "pretrained is missing"),
        ({"pretrained": str(WEIGHTS.parent / "dense")}, HarnessError, "has no tokenizer"),
    ],
)
def test_bad_model_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DMaxLM.create_from_arg_obj({"pretrained": str(WEIGHTS), **arguments}, {"batch_size": 1})


def test_chat_template_is_asked_of_a_model_without() -> None:
    lm = DMaxLM(str(WEIGHTS))
    with pytest.raises(HarnessError, match="has no chat template; leave out --apply_chat_template"):
        lm.chat_template(True)
    with pytest.raises(HarnessError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "Hello"}])


def test_model_arguments_win_over_the_command_lines_options(model: Path) -> None:
    options = {"batch_size": "4", "max_batch_size": None, "device": "cpu"}
    lm = DMaxLM.create_from_arg_string(f"pretrained={model},decoder=fixed-steps,steps=5,dtype=bfloat16", options)
    assert (lm.batch_size, lm.llm.max_batch_size, lm.params.decoder_options) == (4, 4, {"steps": 5})
    assert lm.llm.model.dtype == torch.bfloat16
    assert DMaxLM.create_from_arg_obj({"pretrained": model, "batch_size": "auto:2"}, options).batch_size == 32
    assert DMaxLM(str(model), batch_size="auto", max_batch_size=6).batch_size == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_device_that_nobody_asked_for_falls_back(model: Path) -> None:
    lm = DMaxLM.create_from_arg_obj({"pretrained": str(model)}, {"device": "cuda:0"})
    assert lm.device == torch.device("cpu")
    with pytest.raises(HarnessError, match="there is no CUDA device"):
        DMaxLM.create_from_arg_obj({"pretrained": str(model), "device": "cuda:0"}, {"device": "cuda:0"})


def test_model_has_its_name_once_it_is_imported() -> None:
    assert get_model("dmax") is DMaxLM


def test_entry_point_is_the_model() -> None:
    """As releases of the harness after 0.4.13 do it: the entry point itself goes into the registry."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"]["lm_eval.models"].items()
    registry: Registry[Any] = Registry("model")
    registry.register(name, target=EntryPoint(name, value, "lm_eval.models"))
    assert name == "dmax"
    assert registry.get("dmax") is DMaxLM


@pytest.mark.parametrize(("name", "in_chat"), [("gsm8k", False), ("gsm8k-cot-llama", True)])
def test_definitions_of_the_harness_run_as_they_are(
    evaluate: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch, name: str, in_chat: bool
) -> None:
    """Their prompts, examples, stop strings, filters and metrics, with the row's own answer or another one given."""
    given = iter(["He has 3.\n#### 0", "#### 7", "The final answer is 2"])

    def answer(self: LLM, prompts: list[list[int]], params: Sequence[GenerationParams]) -> list[GenerationOutput]:
        return [replace(output, text=next(given)) for output in Recorder()(prompts, params)]

    monkeypatch.setattr(LLM, "generate", answer)
    results = evaluate(
        f"real-{name}", model="dmax", model_args=f"pretrained={model}", num_fewshot=1, batch_size=1,
        apply_chat_template=in_chat, fewshot_as_multiturn=in_chat, gen_kwargs="max_gen_toks=32",
    )  # fmt: skip
    scores = results["results"][f"real-{name}"]
    assert scores["exact_match,strict-match"] == pytest.approx(1 / 3)
    assert scores["exact_match,flexible-extract"] == pytest.approx(2 / 3)


def test_package_works_without_the_harness() -> None:
    """In a process of its own: modules imported twice would be in the way of every test behind this one."""
    program = (
        "import sys\n"
        "class Absent:\n"
        "    @staticmethod\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'lm_eval': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        "import dmax.evaluation\n"
        "try:\n"
        "    import dmax.evaluation.harness\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'dmax-llm[harness]'" in done.stdout


def test_command_line_refuses_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise HarnessError("dtype is 'int8'.")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", refuse)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "Error: dtype is 'int8'.\n"


@pytest.mark.slow
def test_command_line(model: Path, tasks: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dmax.evaluation.harness", "run", "--model", "dmax", "--include_path", str(tasks),
         "--tasks", "chat", "--model_args", f"pretrained={model},threshold=0.6,stats={tmp_path / 'stats.jsonl'}",
         "--apply_chat_template", "--batch_size", "2", "--limit", "2", "--output_path", "out", "--log_samples"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "|chat " in done.stdout
    assert "chat: 2 answers" in done.stderr
    assert "There is no CUDA device" in done.stderr or torch.cuda.is_available()
    [results] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["dmax"]["cost"]["chat"]["answers"] == 2
    assert len((tmp_path / "stats.jsonl").read_text().splitlines()) == 2
