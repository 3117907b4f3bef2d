"""What the embedded model does beside a single question: second questions of a conversation, and what is no problem.

Asks every question of `benchmarks/data/everyday_questions.jsonl` alone, then as the second of a conversation, behind
the question before it and the model's own answer to that. Then sends the lines of `benchmarks/data/other_requests.txt`,
which were written apart from those that the model learns from, and counts how many get the one sentence that says what
it can do.

    python benchmarks/nano_conversations.py [--model NAME] [--questions N] [--json FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from answered import EVERYDAY_QUESTIONS, GEN_LENGTH, Problems
from run_record import describe_model, describe_run, parse_arguments, report

from dmax import LLM, GenerationParams
from dmax.evaluation.word_problems import grade
from dmax.problems.everyday import OTHER_ANSWER

OTHER_REQUESTS = Path(__file__).parent / "data" / "other_requests.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="an embedded model or a folder")
    parser.add_argument("--questions", type=int, help="the first of them; all by default")
    arguments = parse_arguments(parser)
    llm, params = LLM(arguments.model), GenerationParams(gen_length=GEN_LENGTH)
    rows = Problems(arguments.questions, arguments.seed, "everyday", EVERYDAY_QUESTIONS).rows
    first = llm.generate([LLM.chat_prompt(row["question"]) for row in rows], params)
    conversations = [
        [
            *LLM.chat_prompt(rows[index - 1]["question"]),
            {"role": "assistant", "content": first[index - 1].text or ""},
            *LLM.chat_prompt(row["question"]),
        ]
        for index, row in enumerate(rows)
    ]
    second = llm.generate(conversations, params)
    requests = OTHER_REQUESTS.read_text(encoding="utf-8").splitlines()
    others = llm.generate([LLM.chat_prompt(request) for request in requests], params)
    wrong = {
        request: output.text for request, output in zip(requests, others, strict=True) if output.text != OTHER_ANSWER
    }
    refused = [row["question"] for row, output in zip(rows, first, strict=True) if output.text == OTHER_ANSWER]
    result = {
        "questions": len(rows),
        "right_as_first": sum(grade(rows, first)) / len(rows),
        "right_as_second": sum(grade(rows, second)) / len(rows),
        "questions_taken_for_other_requests": refused,
        "other_requests": len(requests),
        "answered_by_the_sentence": 1 - len(wrong) / len(requests),
        "answered_otherwise": wrong,
        **describe_run(), "model": describe_model(arguments.model, llm.model), "seed": arguments.seed,
    }  # fmt: skip
    report(result, arguments.json)


if __name__ == "__main__":
    main()
