"""Generate from Python: one answer, a batch, and an answer watched while it is decoded.

python examples/generate.py
"""

from __future__ import annotations

from dmax import LLM, GenerationParams, PassRecord

QUESTIONS = [
    "A cup of tea is 7 ounces of tea. Liam drinks 6 cups of tea. If tea has 3 calories per ounce how many calories did "
    "he consume?",
    "Ethan gets 140 emails a day. 30% of those emails don't require any response. Ethan responds to the rest of them. "
    "How many emails does Ethan respond to in a 5 day work week?",
]


def main() -> None:
    llm = LLM("nano")  # in the package; a folder or a Hub id works as well
    prompts = [llm.chat_prompt(question) for question in QUESTIONS]

    # All prompts share every forward, and each gets the tokens it would get alone.
    for output in llm.generate(prompts, GenerationParams(gen_length=256)):
        print(output.text)
        print(f"-- {output.num_tokens} tokens in {output.nfe} forwards: {output.tpf:.2f} tokens per forward\n")

    # One answer, pass by pass: what was decoded, and what was taken back.
    def show(prompt_index: int, record: PassRecord) -> None:
        print(
            f"pass {record.pass_number:2}: block {record.block}, {len(record.promoted)} tokens promoted, "
            f"{len(record.revised)} revised{', done' if record.final else ''}"
        )

    llm.generate(prompts[0], on_pass=show)


if __name__ == "__main__":
    main()
