from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from dmax.problems import SeedError, equations, show_working
from dmax.problems.gsm8k_variants import Gsm8kVariants

BAKERY = {
    "question": "Tom bakes 24 loaves and sells 15 of them for $3 each.  How much does he earn, and how many are left?",
    "answer": "Tom earns 15*3 = $<<15*3=45>>45.\n"
    "There are 24 x 1 = 24 loaves, so 24 - 15 = <<24-15=9>>9 are left.\n#### 9",
}
BUS = {
    "question": "A bus has 48 riders. Half of them get off, and the rest share 6 benches. "
    "How many riders sit on a bench?",
    "answer": "The riders that stay are half of 48, or <<48/2=24>>24.\n"
    "So 24/6 = <<24/6=4>>4 riders sit on each.\n#### 4",
}
WEEK = {
    "question": "Anna walks 11 miles a day. How many miles does she walk in 5 weeks?",
    "answer": "There are 7*5=<<7*5=35>>35 days.\nAnna walks 35*11=<<35*11=385>>385 miles.\n#### 385",
}
SALE = {
    "question": "A coat costs $80 and is sold for 20% less. How much is it now?",
    "answer": "It costs .2*80=$<<.2*80=16>>16 less, which is 20% of it.\nSo it is 80-16=$<<80-16=64>>64 now.\n#### 64",
}
ROUNDED = {
    "question": "Nine cats share 20 fish. How many whole fish has each?",
    "answer": "Each has 20/9 = <<20/9=2>>2 fish.\n#### 2",
}


def made(row: dict[str, str], count: int = 60, rename: bool = False) -> list[dict[str, str]]:
    variants = Gsm8kVariants([row], rename=rename)
    assert variants.qualified == 1, variants.reasons
    return [variants.problem("train", index, variants_only=True) for index in range(count)]


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def reason(question: str, answer: str) -> str:
    (why,) = Gsm8kVariants([{"question": question, "answer": answer}]).reasons
    return why


@pytest.mark.parametrize("row", [BAKERY, BUS, WEEK, SALE])
def test_every_equation_is_worked_out_again(row: dict[str, str]) -> None:
    found = made(row)
    original = equations(Gsm8kVariants([row]).plain(0)["solution"])
    assert len({problem["question"] for problem in found}) > 20
    for problem in found:
        steps = equations(problem["solution"])
        assert len(steps) == len(original)
        for step in steps:
            stated = problem["solution"][step.result : step.end].lstrip("$").replace(",", "")
            assert Fraction(eval(step.expression)).limit_denominator(1000) == Fraction(stated), "exactly, not rounded"
        last = steps[-1]
        assert problem["solution"][last.result : last.end].lstrip("$") == problem["answer"]
        assert problem["solution"].endswith(f"\n#### {problem['answer']}")
        assert "<<" not in problem["solution"]


def test_numbers_are_followed_from_the_question_to_the_answer() -> None:
    for problem in made(BAKERY):
        loaves, sold, price = numbers(problem["question"])
        assert problem["solution"] == (
            f"Tom earns {sold} * {price} = ${sold * price}.\n"
            f"There are {loaves} * 1 = {loaves} loaves, so {loaves} - {sold} = {loaves - sold} are left.\n"
            f"#### {loaves - sold}"
        )
        assert loaves > sold
        assert price >= 2


def test_a_note_whose_expression_the_text_lacks_is_written_out() -> None:
    assert Gsm8kVariants([BUS]).plain(0)["solution"] == (
        "The riders that stay are half of 48, or 48 / 2 = 24.\nSo 24 / 6 = 4 riders sit on each.\n#### 4"
    )


def test_whole_results_stay_whole() -> None:
    for problem in made(BUS):
        riders, benches = numbers(problem["question"])
        assert riders % (2 * benches) == 0
        assert riders // (2 * benches) >= 2


def test_constants_and_what_the_calendar_allows_stay() -> None:
    for problem in made(WEEK):
        miles, weeks = numbers(problem["question"])
        assert problem["solution"].startswith(f"There are 7 * {weeks} = {7 * weeks} days.\n")
        assert problem["answer"] == str(7 * weeks * miles)
    row = {
        "question": "Ben reads 9 pages a day, 5 days a week, for 10 weeks. How many pages does he read?",
        "answer": "He reads 9*5=<<9*5=45>>45 pages a week, and 45*10=<<45*10=450>>450 in all.\n#### 450",
    }
    days = {numbers(problem["question"])[1] for problem in made(row)}
    assert len(days) > 2
    assert max(days) <= 7


def test_a_percentage_is_followed_as_a_decimal() -> None:
    seen = set()
    for problem in made(SALE):
        price, percent = numbers(problem["question"])
        seen.add(percent)
        less = price * percent // 100
        decimal = f"{percent / 100:.2f}".rstrip("0")
        assert problem["solution"].startswith(
            f"It costs {decimal} * {price} = ${less} less, which is {percent}% of it."
        )
        assert problem["answer"] == str(price - less)
    assert len(seen) > 3
    assert all(percent % 5 == 0 and percent < 100 for percent in seen)


def test_number_words_stay_words_and_articles_fit() -> None:
    row = {
        "question": "Three men carry an 18-pound box and five sacks of 12 pounds each. "
        "How many pounds has each to carry?",
        "answer": "The sacks weigh 5*12=<<5*12=60>>60 pounds.\nAll weighs 18+60=<<18+60=78>>78 pounds.\n"
        "Each of the three men carries 78/3=<<78/3=26>>26 pounds.\n#### 26",
    }
    questions = [problem["question"] for problem in made(row)]
    for question in questions:
        assert re.match(
            r"(Two|Three|Four|Five|Six) men carry an? \d+-pound box and [a-z]+ sacks of \d+ pounds", question
        )
        assert (" an " in question) == bool(re.search(r"an? (8|11|18)-", question))
    assert len({question.split()[0] for question in questions}) > 1
    for problem in made(row, 20):
        men = problem["question"].split()[0].lower()
        assert f"Each of the {men} men" in problem["solution"]


def test_decimals_stay_decimals() -> None:
    row = {
        "question": "A pen costs $1.50. Ann buys 8 pens. How much does she pay?",
        "answer": "She pays 8*1.50=$<<8*1.50=12.00>>12.00.\n#### 12",
    }
    for problem in made(row):
        pens = numbers(problem["question"])[-1]
        price = re.findall(r"\$(\d\.\d\d)", problem["question"])[0]
        assert not price.endswith("00")
        total = Fraction(price) * pens
        assert total.denominator == 1
        assert problem["solution"] == f"She pays {pens} * {price} = ${total}.00.\n#### {total}"


def test_a_result_that_equals_a_number_of_the_question_is_not_taken_for_it() -> None:
    row = {
        "question": "Jim packs 8 rolls of 2 coins into bags of 4 coins. How many bags does he fill?",
        "answer": "There are 8*2=<<8*2=16>>16 coins, for 16/4=<<16/4=4>>4 bags.\n#### 4",
    }
    for problem in made(row):
        rolls, coins, bag = numbers(problem["question"])
        assert problem["answer"] == str(rolls * coins // bag)


def test_a_number_with_two_possible_sources_stays() -> None:
    row = {
        "question": "Sue has 6 red and 9 blue beads, and 15 strings of 3 beads. How many beads are there?",
        "answer": "Loose are 6+9=<<6+9=15>>15.\nOn strings are 15*3=<<15*3=45>>45.\n"
        "All are 15+45=<<15+45=60>>60.\n#### 60",
    }
    for problem in made(row, 20):
        *kept, each = numbers(problem["question"])
        assert kept == [6, 9, 15]
        assert problem["answer"] == str(15 + 15 * each)


def test_a_number_that_may_be_a_constant_stays() -> None:
    row = {
        "question": "Lea has 7 cats that eat 40 grams a day each. How many grams do they eat in a week?",
        "answer": "They eat 7*40=<<7*40=280>>280 grams a day, so 280*7=<<280*7=1960>>1960 in a week.\n#### 1960",
    }
    for problem in made(row, 20):
        cats, grams = numbers(problem["question"])
        assert (cats, problem["answer"]) == (7, str(49 * grams))


def test_a_small_number_that_the_story_may_bring_in_again_stays() -> None:
    row = {
        "question": "Ray has 2 packs of 20 slices of bread and eats 7 sandwiches. How many slices are left?",
        "answer": "He has 2*20=<<2*20=40>>40.\nHe eats 7*2=<<7*2=14>>14.\nSo 40-14=<<40-14=26>>26 are left.\n#### 26",
    }
    for problem in made(row, 20):
        packs, slices, eaten = numbers(problem["question"])
        assert (packs, problem["answer"]) == (2, str(2 * slices - 2 * eaten))


def test_a_total_that_the_question_states_too_is_kept_true() -> None:
    row = {
        "question": "A shop has 30 hats: 20 red ones at $5 and 10 blue ones at $7. How much are they worth?",
        "answer": "Red: 20*5=$<<20*5=100>>100.\nBlue: 10*7=$<<10*7=70>>70.\nAll: 100+70=$<<100+70=170>>170.\n#### 170",
    }
    for problem in made(row, 20):
        hats, red, _, blue, _ = numbers(problem["question"])
        assert hats == red + blue == 30


def test_a_number_that_no_equation_has_stays() -> None:
    row = {
        "question": "A plant of 9 leaves doubles them daily. How many leaves has it after 3 days?",
        "answer": "Day 1: 9*2=<<9*2=18>>18.\nDay 2: 18*2=<<18*2=36>>36.\nDay 3: 36*2=<<36*2=72>>72.\n#### 72",
    }
    for problem in made(row, 20):
        leaves, days = numbers(problem["question"])
        assert (days, problem["answer"]) == (3, str(8 * leaves))


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("How many are 30 and 40?", "It is clear.\n#### 70", "no equation"),
        ("He has 20 cups and 50 mugs.", "He has 20+50+99 = <<20+50+99=169>>169.\n#### 169", "a number from nowhere"),
        (
            "He has 20 cups and 50 mugs.",
            "20*50 = 70, and 70+20 = <<70+20=90>>90.\n#### 90",
            "an equation that is not exact",
        ),
        (
            "He has 20 cups and 50 mugs.",
            "He has 20+50 = <<20+50=70>>70.\n#### 71",
            "the answer is not one of the results",
        ),
        ("He has 20 cups.", "He has 20-20 = <<20-20=0>>0.\n#### 0", "a result that is not positive"),
        ("He cubes 20.", "20^3 is 20*20*20=<<20*20*20=8000>>8000.\n#### 8000", "powers or rounding"),
        (ROUNDED["question"], ROUNDED["answer"], "an equation that is not exact"),
    ],
)
def test_rows_that_cannot_be_followed_say_why(question: str, answer: str, expected: str) -> None:
    assert reason(question, answer) == expected


def test_names_change_together_and_keep_their_gender() -> None:
    row = {
        "question": "Emma has 20 eggs. Her brother Paul has 7 fewer than Emma. "
        "Emma's eggs and Paul's are boiled. How many?",
        "answer": "Paul has 20-7=<<20-7=13>>13.\nEmma and Paul have 20+13=<<20+13=33>>33 eggs.\n#### 33",
    }
    pairs = set()
    for problem in made(row, 40, rename=True):
        sister, brother = re.match(r"(\w+) has .*brother (\w+) has", problem["question"]).groups()  # type: ignore[union-attr]
        assert f"{sister}'s eggs and {brother}'s are" in problem["question"]
        assert problem["solution"].startswith(f"{brother} has ")
        assert f"\n{sister} and {brother} have" in problem["solution"]
        assert "Emma" not in str(problem) and "Paul" not in str(problem)
        pairs.add((sister, brother))
    sisters, brothers = ({pair[i] for pair in pairs} for i in (0, 1))
    assert len(pairs) > 10 and not sisters & brothers
    assert all("Emma has" in problem["question"] for problem in made(row, 5))


def test_names_stay_where_the_solution_has_another_one() -> None:
    row = {
        "question": "Emma has 20 eggs and buys 7. How many has she?",
        "answer": "Then Emmie has 20+7=<<20+7=27>>27.\n#### 27",
    }
    assert all(problem["question"].startswith("Emma has") for problem in made(row, 5, rename=True))


def test_each_row_comes_once_before_any_comes_again() -> None:
    variants = Gsm8kVariants([BAKERY, BUS, WEEK, SALE, ROUNDED], rename=False)
    assert (variants.total, variants.qualified) == (5, 4)
    for start in (0, 5, 10):
        beginnings = {variants.problem("train", start + i)["question"][:6] for i in range(5)}
        assert len(beginnings) == 5
    for start in (0, 4, 8):
        beginnings = {variants.problem("train", start + i, variants_only=True)["question"][:6] for i in range(4)}
        assert len(beginnings) == 4 and "Nine c" not in beginnings
    as_is = [p for p in (variants.problem("train", i) for i in range(15)) if p["question"] == ROUNDED["question"]]
    assert as_is == [variants.plain(4)] * 3
    assert variants.plain(4) == {
        "question": ROUNDED["question"],
        "solution": "Each has 20 / 9 = 2 fish.\n#### 2",
        "answer": "2",
    }


def test_splits_and_seeds_have_their_own_draws() -> None:
    variants = Gsm8kVariants([BAKERY, BUS, WEEK, SALE])
    runs = {
        key: tuple(variants.problem(*key)["question"] for key in [(key[0], i, key[1]) for i in range(8)])  # type: ignore[misc,arg-type]
        for key in [("train", 0), ("train", 1), ("validation", 0), ("test", 0)]
    }
    assert len(set(runs.values())) == 4
    assert tuple(variants.problem("train", i, 0)["question"] for i in range(8)) == runs["train", 0]
    with pytest.raises(SeedError):
        variants.problem("train", 0, seed=-1)


def test_nothing_to_choose_from_is_said() -> None:
    with pytest.raises(ValueError, match="there are no rows"):
        Gsm8kVariants([]).problem("train", 0)
    with pytest.raises(ValueError, match="none of the rows has variants"):
        Gsm8kVariants([ROUNDED]).problem("train", 0, variants_only=True)


def test_another_process_makes_the_same_problems() -> None:
    rows = [BAKERY, BUS, WEEK, SALE]
    program = (
        "import json, sys\n"
        "from dmax.problems.gsm8k_variants import Gsm8kVariants\n"
        "variants = Gsm8kVariants(json.load(sys.stdin))\n"
        "print(json.dumps([variants.problem('train', i) for i in range(12)]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    output = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(rows),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    variants = Gsm8kVariants(rows)
    assert json.loads(output) == [variants.problem("train", i) for i in range(12)]


def test_solutions_can_be_written_out_in_small_steps() -> None:
    longer = 0
    for problem in made(WEEK, 10):
        worked = show_working(problem["solution"])
        assert worked.endswith(f"#### {problem['answer']}")
        longer += len(worked) > len(problem["solution"])
    assert longer > 5
