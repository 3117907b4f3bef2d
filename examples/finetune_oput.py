"""Fine-tune with On-Policy Uniform Training on rows of your own, then answer with what came out.

    pip install '.[train]'
    python examples/finetune_oput.py [--steps 200] [--output runs/finetuned]

Ten steps, the default, teach a model nothing: they show that everything fits together, in a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from dmax import LLM, GenerationParams

RECIPE = """\
name: finetuned
seed: 1
model: {{start_from: nano}}         # a folder or a Hub id works as well
tokenizer: {{start_from: nano}}
data:
  - {{source: jsonl, path: {data}}}
objective:
  kind: oput                        # both losses: on masks, and on the model's own predictions
  block_length: 32
  mask_ratio: 0.75
  rollout: greedy
  form: joint
optimizer: {{muon_lr: 0.002, adamw_lr: 0.0002, weight_decay: 0.0, warmup: 2}}
train:
  steps: {steps}
  rows: 4
  context: 256
  dtype: float32
  checkpoint_every: {steps}
  validation_rows: 0
"""


def rows(count: int) -> list[dict[str, str]]:
    """Return questions with worked answers; put your own here."""
    return [
        {
            "question": f"A shelf holds {n} books. How many books are on {m} shelves?",
            "answer": f"There are {n} * {m} = {n * m} books.\n#### {n * m}",
        }
        for n, m in ((2 + i % 11, 3 + i % 7) for i in range(count))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/finetuned"))
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        data, recipe = Path(folder, "train.jsonl"), Path(folder, "recipe.yaml")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(77)), encoding="utf-8")
        recipe.write_text(RECIPE.format(data=data, steps=options.steps), encoding="utf-8")
        command = [sys.executable, "-m", "dmax", "train", str(recipe), "--output", str(options.output)]
        subprocess.run(command, check=True)

    llm = LLM(options.output / "model")
    [answer] = llm.generate(llm.chat_prompt(rows(1)[0]["question"]), GenerationParams(gen_length=64))
    print(answer.text)


if __name__ == "__main__":
    main()
