"""Adding, subtracting, counting and comparing."""

from __future__ import annotations

from random import Random

from demo.phrases import ask
from demo.skills.exchange import Exchange, exchange
from demo.words import CREATURES, FOODS, THINGS, held_out, made_up, person, sought

SUM_FORMS = (
    "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a}+{b}=?", "Calculate {a} + {b}.", "How much is {a} plus {b}?",
    "What is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?", "Add {b} to {a}.", "Work out {a} + {b} for me.",
    "If you add {a} and {b}, what do you get?", "{a} plus {b}?", "Solve {a} + {b}.", "How much do {a} and {b} make?", "{a} 더하기 {b}는?",
)  # fmt: skip
DIFFERENCE_FORMS = (
    "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} =", "{a}-{b}=?", "Calculate {a} - {b}.", "How much is {a} minus {b}?",
    "What is {a} minus {b}?", "Subtract {b} from {a}.", "Take {b} away from {a}.", "Work out {a} - {b} for me.",
    "If you take {b} from {a}, what is left?", "{a} minus {b}?", "Solve {a} - {b}.", "{a} 빼기 {b}는?",
)  # fmt: skip
MORE_FORMS = (
    "{name} has {a} {items} and gets {b} more. How many {items} does {name} have now?",
    "There are {a} {items} in a box and {b} in another one. How many {items} are there?",
    "{name} buys {a} {items} today and {b} tomorrow. How many is that?",
)
LESS_FORMS = (
    "{name} has {a} {items} and gives {b} away. How many {items} are left?",
    "There were {a} {items}, but {b} were lost. How many {items} are left?",
    "{name} had {a} {items} and sold {b}. How many does {name} still have?",
)


def arithmetic(draw: Random, wanted: bool | None) -> Exchange:
    a, sign, b = sought(wanted, lambda: problem(draw), lambda item: item)
    if draw.random() < 0.12 and (sign == "+" or a >= b):
        forms = MORE_FORMS if sign == "+" else LESS_FORMS
        question = ask(draw, forms, a=a, b=b, name=person(draw), items=draw.choice((*THINGS, *CREATURES)) + "s")
    else:
        question = ask(draw, SUM_FORMS if sign == "+" else DIFFERENCE_FORMS, a=a, b=b)
    result = a + b if sign == "+" else a - b
    return exchange(question, f"{a} {sign} {b} = {result}", worked(a, sign, b))


def problem(draw: Random) -> tuple[int, str, int]:
    a, b = number(draw), number(draw)
    sign = draw.choice("+-")
    if sign == "-" and a < b and draw.random() < 0.75:
        a, b = b, a
    return a, sign, b


def number(draw: Random) -> int:
    return draw.choice((draw.randint(0, 9), *(draw.randint(10, 99),) * 4, *(draw.randint(100, 999),) * 5))


def worked(a: int, sign: str, b: int) -> str:
    """Digit by digit, as on paper."""
    if sign == "-" and a < b:
        return f"{b} is larger, so the result is negative. {worked(b, '-', a)} With the sign it is {a - b}."
    steps, carry = [], 0
    for place, name in enumerate(("ones", "tens", "hundreds")[: max(len(str(a)), len(str(b)))]):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry if sign == "+" else x - y - carry
        carried = f" {sign} {carry}" if carry else ""
        carry = int(total > 9 if sign == "+" else total < 0)
        more = (f", carry {carry}" if sign == "+" else f", borrow {carry}") if carry else ""
        steps.append(f"{name} {x} {sign} {y}{carried} is {total}: write {total % 10}{more}")
    result = a + b if sign == "+" else a - b
    return "; ".join(steps) + f". So it is {result}."


COUNT_LIST_FORMS = (
    "How many things are in this list: {items}?", "Count these: {items}.", "How many are these: {items}?", "Count the words: {items}",
    "How many words do you see here: {items}?", "Here is a list: {items}. How many are there?", "Please count: {items}.",
)  # fmt: skip
COUNT_TO_FORMS = (
    "Count from {a} to {b}.", "Can you count from {a} to {b}?", "Please count from {a} up to {b}.", "Numbers from {a} to {b}?",
    "List the numbers from {a} to {b}.", "Say all numbers from {a} to {b}.",
)  # fmt: skip
COUNT_DOWN_FORMS = (
    "Count down from {b} to {a}.",
    "Count backwards from {b} to {a}.",
    "Can you count down from {b} to {a}?",
)
NEXT_FORMS = ("Which number comes after {a}?", "What comes after {a}?", "What is the next number after {a}?")
BEFORE_FORMS = ("Which number comes before {a}?", "What comes before {a}?", "What is the number just before {a}?")


def counting(draw: Random, wanted: bool | None) -> Exchange:
    kind = draw.randrange(8)
    if kind < 3:
        return count_list(draw, wanted)
    if kind == 3:
        a = sought(wanted, lambda: draw.randint(1, 998), lambda item: ("next", item))
        if draw.random() < 0.5:
            return exchange(ask(draw, NEXT_FORMS, a=a), f"After {a} comes {a + 1}.", f"{a} and one more is {a + 1}.")
        return exchange(ask(draw, BEFORE_FORMS, a=a), f"Before {a} comes {a - 1}.", f"{a} less one is {a - 1}.")
    a, b = sought(wanted, lambda: span(draw), lambda item: ("span", item))
    numbers = [str(value) for value in range(a, b + 1)]
    if kind == 4:
        thought = f"I start at {b} and stop at {a}."
        return exchange(ask(draw, COUNT_DOWN_FORMS, a=a, b=b), ", ".join(reversed(numbers)), thought)
    return exchange(ask(draw, COUNT_TO_FORMS, a=a, b=b), ", ".join(numbers), f"I start at {a} and stop at {b}.")


def span(draw: Random) -> tuple[int, int]:
    first = draw.choice((1, 1, draw.randint(0, 20), draw.randint(0, 90), draw.randint(0, 900)))
    return first, first + draw.randint(2, 18)


def count_list(draw: Random, wanted: bool | None) -> Exchange:
    items = sought(wanted, lambda: some_items(draw), lambda item: item)
    joined = draw.choice((", ", ", ", " ")).join(items)
    counted = ", ".join(f"{item} {place}" for place, item in enumerate(items, 1))
    return exchange(
        ask(draw, COUNT_LIST_FORMS, items=joined), f"{counted}: there are {len(items)}.", "I count one by one."
    )


def some_items(draw: Random) -> tuple[str, ...]:
    count = draw.randint(2, 12)
    if draw.random() < 0.25:
        return (draw.choice((*THINGS, *CREATURES)),) * count
    pool = (*THINGS, *CREATURES, *FOODS)
    return tuple(draw.choice(pool) if draw.random() < 0.9 else made_up(draw) for _ in range(count))


LARGER_FORMS = (
    "Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?", "What is more, {a} or {b}?", "{a} or {b}: which is larger?",
    "Which is greater, {a} or {b}?", "Tell me the bigger number: {a}, {b}.", "Compare {a} and {b}.",
)  # fmt: skip
SMALLER_FORMS = (
    "Which is smaller, {a} or {b}?", "Which number is less: {a} or {b}?", "What is less, {a} or {b}?", "{a} or {b}: which is smaller?",
    "Tell me the smaller number: {a}, {b}.",
)  # fmt: skip
IS_MORE_FORMS = (
    "Is {a} larger than {b}?",
    "Is {a} more than {b}?",
    "Is {a} bigger than {b}?",
    "Is {a} greater than {b}?",
)
IS_LESS_FORMS = ("Is {a} smaller than {b}?", "Is {a} less than {b}?")
MOST_FORMS = ("Which is the largest: {all}?", "What is the biggest number here: {all}?", "Find the largest of {all}.")


def comparing(draw: Random, wanted: bool | None) -> Exchange:
    a, b = sought(wanted, lambda: near_numbers(draw), lambda item: ("compare", item))
    relation = "larger than" if a > b else "smaller than" if a < b else "equal to"
    thought = f"{a} is {relation} {b}."
    kind = draw.randrange(10)
    if kind < 3:
        if a == b:
            return exchange(ask(draw, LARGER_FORMS, a=a, b=b), f"{a} and {b} are equal.", thought)
        return exchange(ask(draw, LARGER_FORMS, a=a, b=b), f"{max(a, b)} is larger than {min(a, b)}.", thought)
    if kind < 5:
        if a == b:
            return exchange(ask(draw, SMALLER_FORMS, a=a, b=b), f"{a} and {b} are equal.", thought)
        return exchange(ask(draw, SMALLER_FORMS, a=a, b=b), f"{min(a, b)} is smaller than {max(a, b)}.", thought)
    if kind < 9:
        forms, yes = (IS_MORE_FORMS, a > b) if draw.random() < 0.6 else (IS_LESS_FORMS, a < b)
        return exchange(ask(draw, forms, a=a, b=b), f"{'Yes' if yes else 'No'}, {a} is {relation} {b}.", thought)
    numbers = three_numbers(draw, wanted)
    listed = f"{numbers[0]}, {numbers[1]} and {numbers[2]}"
    answer = f"The largest is {max(numbers)}."
    return exchange(ask(draw, MOST_FORMS, all=listed), answer, f"I compare them: {max(numbers)} is the largest.")


def three_numbers(draw: Random, wanted: bool | None) -> tuple[int, ...]:
    while True:
        numbers = tuple(draw.sample(range(10, 1000), 3))
        if wanted is None or held_out(numbers) == wanted:
            return numbers


def near_numbers(draw: Random) -> tuple[int, int]:
    a = number(draw)
    kind = draw.randrange(6)
    if kind == 0:
        return a, max(0, a + draw.choice((-10, -2, -1, 1, 2, 10, 100)))
    if kind == 1:
        return a, int(str(a)[::-1])
    if kind == 2 and draw.random() < 0.3:
        return a, a
    return a, number(draw)
