"""Hold answers to a JSON schema: whatever the model says, they are JSON that the schema describes.

The embedded model writes word problems, not JSON. So it may think as it likes first, and the schema is for the result.

pip install '.[structured]'
python examples/structured.py
"""

from __future__ import annotations

import json

from dmax import LLM, GenerationParams

QUESTIONS = (
    "A cup of tea is 7 ounces of tea. Mia drinks 6 cups of tea. If tea has 3 calories per ounce how many calories did "
    "she consume?",
    "Ethan gets 140 emails a day. 30% of those emails don't require any response. Ethan responds to the rest of them. "
    "How many emails does Ethan respond to in a 5 day work week?",
)
RESULT = {"type": "integer", "minimum": 0, "maximum": 9999}


def main() -> None:
    llm = LLM("nano")
    assert llm.tokenizer is not None
    prompts = [llm.tokenizer.apply_chat_template(LLM.chat_prompt(question)) for question in QUESTIONS]
    thoughts = [(output.text or "").partition("####")[0] for output in llm.generate(prompts)]
    begun = [
        prompt + llm.tokenizer.encode(thought + "#### ") for prompt, thought in zip(prompts, thoughts, strict=True)
    ]
    results = llm.generate(begun, GenerationParams(json_schema=RESULT, gen_length=8))
    for question, thought, output in zip(QUESTIONS, thoughts, results, strict=True):
        assert output.finish_reason == "stop"  # "length": it was cut, and is only the beginning of an answer
        print(f"{question}\n  {' '.join(thought.split())}\n  {json.loads(output.text or '')}")

    # Any schema is held to, whatever the model would rather say. Not all of it is worth reading.
    trip = {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
    }
    [output] = llm.generate(LLM.chat_prompt("Where do we go?"), GenerationParams(json_schema=trip, gen_length=64))
    print(json.loads(output.text or "").keys(), f"in {output.passes} passes for {output.num_tokens} tokens")


if __name__ == "__main__":
    main()
