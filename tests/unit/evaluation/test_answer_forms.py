"""Right and wrong answers in the shapes that models give them: LaTeX, programs, words."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest

from dmax.evaluation.tasks import Verdict, get_task


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("9", r"$\boxed{9.}$"),
        ("9", r"\boxed{9,}"),
        ("9", r"\boxed{9;}"),
        (r"(3,\infty)", r"\boxed{x>3}"),
        ("x>3", r"\boxed{(3,\infty)}"),
        (r"90^\circ", "\\boxed{90\xb0}"),
        ("90", "\\boxed{90\xb0}"),
        (r"90^\circ", r"\boxed{90}"),
        (r"\$12", "\\boxed{\xa312}"),
        ("12", "\\boxed{\xa312}"),
        ("5", r"\boxed{\text{Answer: }5}"),
        ("5", r"\boxed{\text{Answer: 5}}"),
        (r"\frac{1}{3}", r"\boxed{0.\overline3}"),
        (r"\frac{1}{3}", r"\boxed{0.\overline{3}}"),
        (r"\frac16", r"\boxed{0.1\bar{6}}"),
        ("5", r"\boxed{\textbf{(C)}\ 5}"),
        (r"\text{(C)}", r"\boxed{\textbf{(C)}\ 5}"),
        (r"\text{(C)}", r"\boxed{C}"),
        (r"\text{(C)}", r"\boxed{\text{C}}"),
        ("x^2", r"\boxed{{x^2}}"),
        (r"\frac{1}{2}", r"The answer is \frac{1}{2}."),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"3\sqrt{13}", r"So the distance is 3\sqrt{13}"),
        ("(2,5]", r"\boxed{2<x\le 5}"),
        (r"(-\infty, 2) \cup (3, \infty)", r"\boxed{x<2 \text{ or } x>3}"),
        (r"x \in [-2,7]", r"\boxed{-2\leq x\leq 7}"),
        ("(-1,6)", r"\boxed{6 > x > -1}"),
        (r"\frac{14}{3}", r"\boxed{4\frac{2}{3}}"),
        (r"\frac{14}{3}", "\\boxed{4\u2154}"),
        (r"\text{Evelyn}", r"\boxed{Evelyn}"),
        (r"\text{Evelyn}", r"\boxed{\text{evelyn}.}"),
        (r"10,\!080", r"\boxed{10080.}"),
        (r"\sqrt{2}", r"\boxed{1.414214}"),
        (r"\frac13", r"\boxed{0.333333}"),
        ("2220", "Thus, $x = 2220$."),
        ("x=5", r"\boxed{5}"),
        ("5", r"\boxed{x = 5.}"),
        (r"\frac{\pi}{2}", "\\boxed{\u03c0/2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3,\frac{\pi}{2}).}"),
        ("(3,4]", r"\boxed{3 < a \leq 4}"),
        ("4", r"$\boxed{\$4.00}$"),
        ("9", "\\boxed{\uff19}"),
        ("5", r"\boxed{(C)~5}"),
        ("1,-2", r"\boxed{-2, 1.}"),
        (r"\frac{1}{2}", r"**\frac{1}{2}**"),
        ("6+9i", "The result equals 6+9i."),
        ("27", "27"),
        ("-5", "\\boxed{\u22125}"),
        ("9", r"\boxed{9\,.}"),
        ("9", r"\boxed{9\text{.}}"),
        ("9", r"\boxed{9}."),
        (r"(3,\infty)", r"\boxed{3<x}"),
        (r"(3,\infty)", r"\boxed{(3, +\infty)}"),
        (r"[3,\infty)", r"\boxed{x\geqslant 3}"),
        ("x>3", r"\boxed{x\in(3,\infty)}"),
        (r"(3,\infty)", r"\boxed{\{x \mid x > 3\}}"),
        (r"x \le 5", r"\boxed{(-\infty,5]}"),
        (r"90^\circ", r"\boxed{90\text{ degrees}}"),
        ("90", r"\boxed{90^{\circ}.}"),
        ("12", "\\boxed{\u20ac12}"),
        ("12", "\\boxed{12\u20ac}"),
        ("12", "\\boxed{\\text{\xa3}12}"),
        ("5", r"\boxed{\text{The answer is }5}"),
        ("5", r"\boxed{\text{answer} = 5}"),
        ("5", r"\boxed{\textbf{Answer: } 5}"),
        (r"\frac{41}{333}", r"\boxed{0.\overline{123}}"),
        (r"\frac{1}{3}", r"\boxed{0.\dot{3}}"),
        (r"\frac{1}{3}", r"\boxed{.\overline{3}}"),
        (r"-\frac{1}{3}", r"\boxed{-0.\overline{3}}"),
        ("5", r"\boxed{\textbf{(C) }5}"),
        ("5", r"\boxed{\textbf{(C) } 5}"),
        ("5", r"\boxed{(\text{C})\ 5}"),
        ("5", r"\boxed{\mathrm{(C)}\ 5}"),
        ("5", r"\boxed{\text{C. }5}"),
        ("x", r"\boxed{{{x}}}"),
        (r"\frac12", r"\frac12"),
        ("x^2+1", "The polynomial is x^2+1"),
        (r"\sqrt{5}", r"= \sqrt{5}"),
        ("2k+2", "2k+2"),
        (r"\frac{3}{56}", r"Final answer: \frac{3}{56}"),
        ("(6,31,-1)", "(6,31,-1)"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}.}"),
        (r"10,\!080", r"\boxed{10,080,}"),
        (r"5.4 \text{ cents}", r"\boxed{5.4.}"),
    ],
)
def test_restated_mathematics_is_right(reference: str, answer: str) -> None:
    verdict = get_task("math500").grade({"problem": "?", "answer": reference}, answer)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1/2004!", r"\boxed{1/2006!}"),
        ("1/2^{99}", r"\boxed{1/2^{98}}"),
        (r"(3,\infty)", r"\boxed{x\ge3}"),
        (r"(3,\infty)", r"\boxed{x<3}"),
        ("90", "\\boxed{91\xb0}"),
        (".0000672", r"\boxed{.0000673}"),
        ("52_8", r"\boxed{52_9}"),
        (r"\text{(C)}", r"\boxed{\textbf{(D)}\ 5}"),
        ("5", r"\boxed{\textbf{(C)}\ 6}"),
        (r"\frac13", r"\boxed{0.3}"),
        ("10000000", r"\boxed{10000001}"),
        (r"\frac{x}{2^{99}}", r"\boxed{\frac{x}{2^{98}}}"),
        ("(1/2^{99},3)", r"\boxed{(1/2^{98},3)}"),
        (r"\frac{\sqrt2}{10^{30}}", r"\boxed{\frac{\sqrt3}{10^{30}}}"),
        (r"\frac{1}{2}", r"The answer is \frac{1}{3}."),
        ("1000000.5", r"\boxed{1000000}"),
        ("x>3", r"\boxed{x>4}"),
        ("9", ""),
        ("10^{-20}", r"\boxed{10^{-21}}"),
        ("10^{-20}", r"\boxed{0}"),
        ("e^{-50}", r"\boxed{e^{-51}}"),
        (r"\frac{1}{7}", r"\boxed{0.1428}"),
        (r"\text{(C)}", r"\boxed{\text{(C)} + 1}"),
        (r"\frac{1}{10^{12}}", r"\boxed{\frac{2}{10^{12}}}"),
        ("2^{-60}", r"\boxed{0}"),
        (r"\{1/3^{50},2\}", r"\boxed{\{1/3^{51},2\}}"),
        ("1/99!", r"\boxed{1/98!}"),
        (r"10^{-9}\pi", r"\boxed{10^{-10}\pi}"),
        (r"\frac{1}{3}", r"\boxed{0.\overline{4}}"),
        ("x>3", r"\boxed{x\ge 3}"),
        (r"(3,\infty)", r"\boxed{[3,\infty)}"),
        ("90", "\\boxed{90.5\xb0}"),
        (r"\text{(B)}", r"\boxed{\textbf{(C)}}"),
        ("123456789", r"\boxed{123456788}"),
        (r"\frac12", r"\frac13"),
    ],
)
def test_mathematics_that_is_nearly_the_same_is_wrong(reference: str, answer: str) -> None:
    verdict = get_task("math500").grade({"problem": "?", "answer": reference}, answer)
    assert not verdict.right, verdict


CODE = 'def halve(n: int) -> int:\n    """Half."""\n    return n // 2'
RIGHT_PROGRAMS = [
    f"```python\n{CODE}",
    f"```python\n{CODE}\n\nThis function halves n.",
    f"```python\n{CODE}\n\ndef other(x):\n    return (x +",
    f"```python\n{CODE}<|endoftext|>",
    f"```python\n{CODE}\n```<|role_end|>",
    "  return n // 2",
    "\treturn n // 2",
    "  if n > 0:\n    return n // 2\n  return n // 2",
    "\tif n > 0:\n\t\treturn n // 2\n\treturn n // 2",
    f"[BEGIN]\n{CODE}\n[DONE]",
    f"[BEGIN]\n{CODE}\n[DONE]\n\nYou are an expert. def halve(n): return 3",
    f"{CODE}\n```\nThis halves n.",
    f"{CODE}\n```",
    f"Here:\n\n{CODE}\n\nIt halves.",
    f"```\n{CODE}\n```",
    f"Sure.\n```python\n{CODE}\n```\nExample:\n```python\nprint(halve(7))\n```",
    "```python\n  return n // 2\n```",
    "```python\n\treturn n // 2",
    "    return n // 2\n```\nThis is the body.",
    "return n // 2",
    "    return n // 2<|endoftext|>",
    "    return n // 2\n\nprint('prose is here' and",
    f"```python\n{CODE}\nThis is prose",
    f"```python\nhalve(7)\n```\n{CODE}",
    f"The idea is n // 2.\n\n```python\n{CODE}\n\n# Test\nassert halve(7) == 3\nprint(halve(",
    f"[PYTHON]\n{CODE}\n[/PYTHON]",
    f"~~~python\n{CODE}\n~~~",
    f"```python\n{CODE}\n```\n\n```\n3\n```",
    "1. x\n   ```python\n   def halve(n):\n       return n // 2\n   ```",
    f"</think>\n```python\n{CODE}\n```",
    "  return n // 2\n\nThis returns half.",
    f"```python\n{CODE}```",
    f"<s>{CODE}",
    f"```Python\n{CODE}\n```",
    "  x = n // 2\n  return x\n```\nprose",
    f"``` python\n{CODE}\n```",
    f"{CODE}</s>",
    f"```python\n{CODE}\n\nExplanation: this halves.\n- step 1: divide\n- step 2: floor",
    f"```python\n{CODE}\n\nif __name__ == '__main__':\n    print(halve(",
    f"```\n{CODE}\n\nNote that it's simple",
    f"[BEGIN]\n```python\n{CODE}\n```\n[DONE]",
    f"{CODE}\n[DONE]\n\n[BEGIN]\nfoo bar",
    f"{CODE}\n[DONE]",
    "  if n == 0:\n    return 0\n  return n // 2\n```\nexplanation",
    "\tx = n\n\treturn x // 2\n\nprose it's here",
    "```python\n\tx = n\n\treturn x // 2\n```",
    "if n == 0:\n  return 0\nreturn n // 2",
    f"Here is the code:\n```python\nimport math\n\n{CODE}\n```<|im_end|>\n<|im_start|>user",
    f"```python\n{CODE}<|mdm_mask|><|endoftext|><|endoftext|>",
    "```python\n# helper\ndef g(n):\n    return n // 2\n\ndef halve(n):\n    return g(n)\n",
    f"```py\n{CODE}\n```python\nprint(1)\n```",
    "Code:\n\n    def halve(n):\n        return n // 2\n",
    f"<code>\n{CODE}\n</code>",
    f"```python3\n{CODE}\n```",
    f"```python\n>>> halve(7)\n3\n```\n```python\n{CODE}\n```",
    f"```python\nclass A:\n    pass\n{CODE}\nThat's all\n```",
    f'{CODE}\n\n"""',
    f'```python\n{CODE}\n\n"""\nThis is an unclosed',
    f"Sure! ```python\n{CODE}\n```",
    f"```{{.python}}\n{CODE}\n```",
    '```python\r\ndef halve(n: int) -> int:\r\n    """Half."""\r\n    return n // 2\r\n```',
    f"**Solution**\n\n{CODE}\n\n**Explanation**: it's simple.",
]
WRONG_PROGRAMS = [
    '```python\ndef halve(n: int) -> int:\n    """Half."""\n    return n // 3\n```',
    "I do not know.",
    "",
    "```python\n```",
    "    return n // 3",
    "return",
    "[BEGIN]\n[DONE]",
    f'```python\n{CODE}\n```\nBetter:\n```python\ndef halve(n: int) -> int:\n    """Half."""\n    return n // 3\n```',
]


@cache
def verdicts() -> dict[str, Verdict]:
    """Every program's, run two at a time."""
    task = get_task("humaneval")
    answers = [*RIGHT_PROGRAMS, *WRONG_PROGRAMS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(answers, pool.map(lambda answer: task.grade(task.example, answer), answers), strict=True))


@pytest.mark.parametrize("answer", RIGHT_PROGRAMS)
def test_code_is_found_in_and_out_of_fences(answer: str) -> None:
    assert verdicts()[answer].right, verdicts()[answer]


@pytest.mark.parametrize("answer", WRONG_PROGRAMS)
def test_code_that_is_not_there_or_is_wrong_fails(answer: str) -> None:
    assert not verdicts()[answer].right
    assert verdicts()[answer].reason.startswith("code of "), "and the sandbox says why"


@pytest.mark.parametrize(
    ("answer", "formula", "text", "right"),
    [
        ("They are equal", "1(Al) = 1(Bo)", "They are equal.", True),
        ("They are equal", "1(Al) = 1(Bo)", "No, they are equal.", True),
        ("They are equal", "1(Al) = 1(Bo)", "They are **not** equal.", False),
        ("They are equal", "1(Al) = 1(Bo)", "They aren't equal.", False),
        ("They are equal", "1(Al) = 1(Bo)", "They are no longer the same.", False),
        ("They are equal", "1(Al) = 1(Bo)", "They are unequal.", False),
        ("They are equal", "1(Al) = 1(Bo)", r"\boxed{\text{not equal}}", False),
        ("They are equal", "1(Al) = 1(Bo)", "Neither is more, they are the same.", True),
        ("Al", "7(Al) > 5(Bo)", "Al has more, not Bo.", True),
        ("Al", "7(Al) > 5(Bo)", "Al does not have more.", False),
        ("Al", "7(Al) > 5(Bo)", "Al has more because Bo has not as many.", True),
        ("Yes", "", "Yes, he does not need more.", True),
        ("No", "", "No, he cannot.", True),
    ],
)
def test_a_denial_is_not_what_it_denies(answer: str, formula: str, text: str, right: bool) -> None:
    row = {"Body": "?", "Question": "?", "Answer": answer, "Formula": formula, "Solution-Type": "Comparison"}
    verdict = get_task("asdiv").grade(row, text)
    assert verdict.right is right, verdict
    assert verdict.reason.startswith("words ")
