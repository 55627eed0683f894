"""Which answer is read in a reply: forms that published models and their scorers are known for, and hostile ones."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcot.answers import letter, read_answer, same
from vcot.grounding import split_answer

CHOICES = ("up", "down", "dog", "5")
"""Of the questions with options; "down" is right, which is B."""


def rows(table: str) -> list[str]:
    """Return one reply per line; ⏎ is a line break in the reply, and "---" begins a heading."""
    lines = table.strip("\n").split("\n")
    return [line.replace("⏎", "\n") for line in lines if not line.startswith("---")]


def read(reply: str, accepted: tuple[str, ...], choices: tuple[str, ...] | None = None) -> str | None:
    """Return the answer as it is compared, and check that only a readable one is right."""
    answer = split_answer(reply)[1]
    if answer is None:
        return None
    stated = read_answer(answer, accepted, choices)
    assert stated is not None or not same(answer, accepted, choices)
    return stated


OPTIONS = rows(r"""
--- a mark, and the letter
Answer: B
answer: b
ANSWER: B
Answer : B
Answer:B
Answer:⏎B
Answer:⏎⏎B
Answer： B
Final answer: B
Final Answer: B.
The answer: B
My answer: B
Correct answer: B
> Answer: B
Answer - B
Answer — B
Answer = B
- Answer: B
答案：B
答案：B。
正确答案是B
--- Markdown
**Answer:** B
**Answer**: B
**Answer: B**
***ANSWER***: ***B***
*Answer: B*
__Answer:__ B
Answer: **B**
Answer: *B*
Answer: `B`
Answer: __B__
Answer: **B.** down
Answer: **(B)** down
## Answer⏎B
### Final answer:⏎⏎**B**
# Answer: B
**Final Answer**⏎⏎B
#### **Answer**⏎(B) down
--- brackets and punctuation
Answer: (B)
Answer: (b)
Answer: [B]
Answer: {B}
Answer: <B>
Answer: B.
Answer: B)
Answer: (B).
Answer: B:
Answer: 'B'
Answer: "B"
Answer: “B”
Answer: B,
--- the text of the option
Answer: down
Answer: Down.
Answer: the down
Answer: **down**
Answer: B. down
Answer: B) down
Answer: (B) down
Answer: B: down
Answer: B, down
Answer: B - down
Answer: B — down
Answer: B down
Answer: [B] down
Answer: (B): down.
Answer: down (B)
Answer: down, (B)
Answer: Option B
Answer: option (B)
Answer: Choice B
Answer: Option B: down
Answer: letter B
--- sentences
The answer is B.
The answer is: B
The answer is (B).
The answer is **B**.
The answer is option B.
The correct answer is B.
The final answer is: B
So the final answer is: B.
Therefore, the answer is B
The gear turns. Thus, the correct option is (B).
The best choice is B
The right answer would be B.
I see it.⏎So, the answer is down.
Hence the answer should be B.
The answer must be B.
Answer is B
The answer is B: down.
Answer: The answer is B.
Answer: The correct option is B.
Answer: It is B.
Answer: It's (B).
Answer: I think it is B.
Answer: I choose B.
Answer: B is correct.
Answer: Option B is the correct one.
Answer: B is the answer
Answer: So B.
Answer: I'd say B
--- an explanation
Answer: B, because the arrow points down.
Answer: B because the arrow points down
Answer: (B) since it falls.
Answer: B. The arrow points down.
Answer: B. Down is not the way of the other gear.
Answer: B⏎The arrow points down.
Answer: down, because it falls.
Answer: B, not A.
Answer: B, not A or C
Answer: B, not A, C or D
Answer: B (neither A nor C)
Answer: B (down), as the gear falls
Answer: B. Note that A is a common distractor.
The answer is B. Option A is wrong because nothing goes up.
Answer: B; it is left of the dog.
Answer: B. It goes down because its neighbor goes up.
Answer: B - the arrow falls
--- LaTeX
\boxed{B}
$\boxed{B}$
$$\boxed{B}$$
\[\boxed{B}\]
\(\boxed{B}\)
It falls: \boxed{\text{B}}.
\boxed{\textbf{B}}
\boxed{\mathrm{B}}
\boxed{\textbf{\text{B}}}
\boxed{(B)}
\boxed{\text{(B) down}}
\boxed{B. down}
The final answer is $\boxed{B}$.
The final answer is:⏎\[⏎\boxed{B}⏎\]
Answer: $\boxed{B}$
Answer: \boxed{B}.
ANSWER: $B$
Answer: \(B\)
Answer: \text{B}
--- blocks
<answer>B</answer>
<answer> B </answer>
<answer>⏎B⏎</answer>
<answer>(B) down</answer>
<ANSWER>B</ANSWER>
<think>It falls.</think><answer>B</answer>
<think>It falls.</think>⏎Answer: B
<think>It falls.</think>⏎⏎B
<think>A? No.</think>The answer is B.
◁think▷It falls.◁/think▷B
<answer>B
<answer>\boxed{B}</answer>
<think>It falls.</think><answer><|begin_of_box|>B<|end_of_box|></answer>
<|begin_of_box|>B<|end_of_box|>
--- control tokens
Answer: B<|im_end|>
Answer: B</s>
Answer: B<|eot_id|>
Answer: B <|endoftext|>
Answer: B<end_of_turn>
Answer: B<|im_end|>⏎<|im_start|>user
The answer is B.<eos>
Answer: B<｜end▁of▁sentence｜>
--- nothing but the answer
B
B.
(B)
[B]
**B**
**B.** down
B. down
B) down
(b) down
--- the last one counts
Answer: A⏎Answer: B
Answer: A … actually, Answer: B
Answer: A⏎Actually, that is wrong. Answer: B
Answer: A⏎⏎So the final answer: B
Answer: A. Wait, the answer is B.
Answer: A⏎No, actually the answer is B.
Answer: A⏎⏎Correction: the answer is B.
The answer is A. No, the answer is B.
\boxed{A} is too small. \boxed{B}
The answer is up.⏎No: \boxed{B}
""")


@pytest.mark.parametrize("reply", OPTIONS)
def test_option_is_read_from_published_forms(reply: str) -> None:
    assert read(reply, ("down",), CHOICES) == read(reply, ("B",), CHOICES) == "B"


HOSTILE_OPTIONS = rows(r"""
--- several options
Answer: A or B
Answer: B, not A, but C
Answer: B, not A or C, but D
Answer: A, B
Answer: A and B
Answer: A/B
Answer: A & B
Answer: AB
Answer: (A) (B) (C)
Answer: A. B. C.
Answer: (A)(B)
Answer: [A, B]
Answer: a, b
Answer: a or b
Answer: Both A and B
Answer: Either A or B
Answer: B or maybe C
Answer: B. Or A.
Answer: B, possibly A
Answer: B, also A
Answer: (A) up or (B) down
Answer: up or down
Answer: up, down
Answer: up and down
Answer: down. up.
Answer: down (A)
Answer: A. down
Answer: B. up
Answer: (B) A
Answer: B, but it could be A
Answer: B because it falls or A because it rises
Answer: B. It is up
<answer>A. up⏎B. down⏎C. dog</answer>
<answer>⏎A⏎B⏎</answer>
\boxed{A} or \boxed{B}
\boxed{A}, \boxed{B}
\boxed{A, B}
The answer is A or B.
The answer is either A or B.
Answer: B, the answer could also be A
The answer is up. So \boxed{B}
--- denied
Answer: not B
Answer: Not A
Answer: (B) not down
Answer: B is wrong
Answer: B is not correct
Answer: B isn't right
Answer: neither A nor B
Answer: It is not down
The answer is not B.
Answer: not down
Answer: B cannot be right
Answer: B, not down
Answer: B, which is not down
Answer: B. down is wrong
Answer: (B) down is not correct
Answer: B isn't the answer
--- no option
Answer: E
Answer: (Z)
Answer: sideways
Answer: none of them
Answer: A dog runs
Answer: I do not know
Answer: Based on the arrow
Answer: Because
Answer: Both
Answer: down the hill
Answer: breakdown
Answer: B-flat
Answer: B+
Answer: B.C.
Answer: B2
Answer: Bdown
Answer: 2
Answer: ?
Answer:
I do not know what the answer is.
It falls.
B and then it falls.⏎A comes later.
Look at option B first.
""")


@pytest.mark.parametrize("reply", HOSTILE_OPTIONS)
def test_several_or_no_options_are_unreadable(reply: str) -> None:
    answer = split_answer(reply)[1]
    assert read(reply, ("down",), CHOICES) is None
    assert not any(same(answer or "", (accepted,), CHOICES) for accepted in (*CHOICES, *"ABCD"))


@pytest.mark.parametrize(
    ("choices", "reply", "option"),
    [
        # Numbers: no tolerance between options.
        (("3.1", "3.14"), "B", "B"),
        (("3.1", "3.14"), "A", "A"),
        (("3.1", "3.14"), "3.14", "B"),
        (("3.1", "3.14"), "3.1", "A"),
        (("3.1", "3.14"), "3.141", None),
        (("3.1", "3.14"), "A. 3.14", None),
        (("3.1", "3.14"), "B. 3.14", "B"),
        (("3.1", "3.14"), "3.14, because it is rounded", "B"),
        (("0.5", "0.52", "0.6"), "B) 0.52", "B"),
        (("1.5", "1.45"), "1.5", "A"),
        (("$5.00", "$4.999"), "$5", "A"),
        (("5", "50"), "50", "B"),
        (("5", "50"), "fifty", None),
        (("5", "7"), "five", "A"),
        (("1,000", "100"), "1000", "A"),
        (("5", "-5"), "-5", "B"),
        (("5%", "5"), "5", "B"),
        (("5%", "5"), "5%", "A"),
        (("5", "5.0"), "5.0", "B"),
        (("5", "5.0"), "five", None),
        (("2", "3"), "2 or 3", None),
        (("2", "3"), "B. 2 gears and 1 more", None),
        # Options that contain each other.
        (("red", "red gear"), "red gear", "B"),
        (("red", "red gear"), "red", "A"),
        (("red", "red gear"), "B. red gear", "B"),
        (("red", "red gear"), "red gear, because it turns", "B"),
        (("car", "red car"), "A. The red car", None),
        (("car", "red car"), "B. The red car is left.", "B"),
        (("red", "red and blue", "blue"), "red and blue", "B"),
        (("red", "blue", "white"), "red and blue", None),
        (("up", "up and down"), "B. up and down", "B"),
        # Options that are letters: their text comes first.
        (("B", "A", "C"), "A", "B"),
        (("B", "A", "C"), "(A)", "B"),
        (("B", "A", "C"), "Option A", "A"),
        (("B", "A", "C"), "A. B", "A"),
        (("B", "A", "C"), "A. A", None),
        (("A", "B", "C"), "B.", "B"),
        (("a", "A"), "A", "B"),
        (("a", "A"), "a", "A"),
        (("X", "Y"), "Y", "B"),
        # Options that are equal, empty, or a yes and a no.
        (("cup", "cup"), "cup", "A"),
        (("cup", "the cup"), "the cup", "B"),
        (("", "cup"), "cup", "B"),
        (("yes", "no"), "no", "B"),
        (("yes", "no"), "B. no", "B"),
        (("yes", "no"), "no, yes", None),
        (("yes", "no"), "No, there is none.", "B"),
        (("yes", "no"), "A, no", None),
        (("red", "both A and C", "blue"), "both A and C", "B"),
        (("red", "both A and C", "blue"), "B. both A and C", "B"),
        (("It is red", "It is blue"), "It is blue", "B"),
        (("a dog", "a cat"), "a cat", "B"),
        (tuple("abcdefghi"), "I", "I"),
        (("a", "an") + ("it",) * 7, "I think so", None),
    ],
)
def test_option_is_chosen_by_exact_text_first(choices: tuple[str, ...], reply: str, option: str | None) -> None:
    assert read(f"Answer: {reply}", (choices[-1],), choices) == option


YES = rows(r"""
Answer: yes
Answer: Yes.
**Yes**
Yes
Yes.
Yes, it is.
Answer: Yes, there is a gear.
Answer: YES!
Answer: yes: a red one
Answer: Yes; on the left
The answer is yes.
The answer is: Yes
\boxed{\text{Yes}}
<answer>Yes</answer>
## Answer⏎Yes
Answer: Yes it is.
Answer: Yes there is
Answer: yes because it turns
Answer: Yes, there is no doubt.
Answer: Yes, and there are no others here.
Answer: Yes</s>
Answer: [yes]
Answer: no. Wait, the answer is yes.
Answer: (yes)
Answer: Yes (on the left)
Answer: Yes – on the left
<think>Is it? Yes.</think>⏎Yes, it is.
So the answer is yes, it turns.
Answer: Yes, see bus no. 5
""")
NO = rows(r"""
Answer: no
No.
No, there is not.
Answer: No gears are visible.
The answer is no.
Answer: no, none
Answer: No, no.
Answer: No there is none
Answer: No red gear appears in it
Answer: No — none at all
""")
NEITHER = rows(r"""
Answer: no, yes
Answer: yes, no
Answer: yes: or no
Answer: yes or no
Answer: yes and no
Answer: yes/no
Answer: Yes. No.
Answer: yes no
Answer: No. Actually yes
Answer: yes, but no
Answer: Yes! No!
Answer: Yes, no, maybe
Answer: no (yes)
Answer: not yes
Answer: maybe
Answer: yesterday
Answer: nothing
Answer: No idea
Answer: No comment.
Answer: No. 5
Answer: No 5
Answer: No parking
Answer: No doubt it is
Answer: north
Answer: neither yes nor no
Answer: it depends
<answer>yes⏎no</answer>
Answer: Yes, no it is not
""")


@pytest.mark.parametrize(
    ("reply", "stated"),
    [(r, "yes") for r in YES] + [(r, "no") for r in NO] + [(r, None) for r in NEITHER],
)
def test_yes_or_no_is_read_and_a_contradiction_is_not(reply: str, stated: str | None) -> None:
    assert read(reply, ("yes",)) == read(reply, ("no",)) == stated


@pytest.mark.parametrize(
    ("reply", "stated"),
    [
        *(
            (reply, "5")
            for reply in (
                "Answer: 5",
                "Answer: five",
                "Answer: 5.",
                "Answer: **5**",
                "Answer: 5.0",
                "5",
                "The answer is 5.",
                "The final answer is: 5",
                r"\boxed{5}",
                r"$\boxed{5}$",
                "Answer: $5$",
                "Answer: It is 5.",
                "Answer: It's five",
                "<answer>5</answer>",
                "## Answer\n5",
                "The answer is 5. There are five gears.",
                "Answer: 5, because I count 5",
                "Answer: 5 (all of them red)",
                "Answer: 5<|im_end|>",
                "Answer: 4\nAnswer: 5",
                "Answer: (5)",
            )
        ),
        ("Answer: 6", "6"),
        ("Answer: 5%", "0.05"),
        ("Answer: many", "many"),
        *(
            (reply, None)
            for reply in (
                "Answer: 5 or 6",
                "Answer: 5, 6",
                "Answer: 5. Or 6.",
                "Answer: 4-6",
                "Answer: 5 gears",
                "Answer: 55 5",
                "Answer: between 4 and 6",
                "Answer: 5, because 6 is wrong",
                "Answer: 1/2",
                "Answer: 5 (or 6)",
                "Answer: 007",
                "There are 5.",
                "Answer: ...",
            )
        ),
    ],
)
def test_number_is_read_and_several_numbers_are_not(reply: str, stated: str | None) -> None:
    assert read(reply, ("5",)) == stated
    answer = split_answer(reply)[1]
    assert same(answer or "", ("5",)) == (stated == "5")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        *(
            (reply, True)
            for reply in (
                "Answer: red gear",
                "Answer: The red gear.",
                "Answer: **Red gear**",
                "The answer is the red gear.",
                "Answer: The answer is red gear",
                r"\boxed{\text{red gear}}",
                "<answer>red gear</answer>",
                "## Final Answer\nred gear",
                "Answer: red gear</s>",
                "Answer: It is a red gear.",
                "Answer: 'red gear'",
                "Answer: red gear, because it turns",
                "Answer: The red gear. This is because it turns.",
                "Answer: [red gear]",
                "<think>It turns.</think>\nred gear",
                "Answer: blue gear\nWait, the answer is red gear.",
            )
        ),
        *(
            (reply, False)
            for reply in (
                "Answer: red gear or blue gear",
                "Answer: red gear, blue gear",
                "Answer: red gear. blue gear",
                "Answer: gear",
                "Answer: not red gear",
                "Answer: red gears and cups",
                "Answer: red gear because it turns or cup because not",
                "Answer: dark red gear",
                "red gear",
                "It is a red gear.",
                "Answer: red gear\nNo, the answer is cup.",
                "Answer: the answer is not red gear",
                "Answer: red gear. It is a cup",
            )
        ),
    ],
)
def test_text_is_right_only_if_nothing_is_added(reply: str, right: bool) -> None:
    answer = split_answer(reply)[1]
    assert same(answer or "", ("red gear",)) == right


@pytest.mark.parametrize(
    "piece",
    [
        "A",
        "B, ",
        "no, ",
        "yes ",
        "up ",
        "(A) ",
        "the answer is ",
        "because ",
        "5 ",
        "$",
        "[",
        "not ",
        "or ",
        "it is ",
        "option ",
        "a ",
        "\n",
        "answer: ",
        "**",
    ],
)
def test_long_answers_are_read_in_linear_time(piece: str) -> None:
    much = piece * (20_000 // len(piece))
    started = time.process_time()
    for text in (much, f"B {much}", f"B, {much}", f"yes, {much}", f"5 because {much}"):
        for accepted, choices in ((("down",), CHOICES), (("yes",), None), (("5",), None), (("red gear",), None)):
            same(text, accepted, choices)
            read_answer(text, accepted, choices)
    assert time.process_time() - started < 8


@settings(deadline=None, database=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            (*CHOICES, *"ABCDab", "(", ")", ".", ", ", " ", " or ", " not ", "\n", " is ", "Answer: ", "5.0")
        )
    ).map("".join)
    | st.text(max_size=12),
    st.lists(st.sampled_from(("up", "down", "yes", "no", "5", "3.14", "3.1", "", "A", "B")), min_size=1, max_size=3),
    st.booleans(),
)
def test_only_readable_answers_are_right(text: str, accepted: list[str], has_choices: bool) -> None:
    choices = CHOICES if has_choices else None
    stated = read_answer(text, accepted, choices)
    assert stated is not None or not same(text, accepted, choices)
    if choices:
        assert letter(text, choices) in (None, *"ABCD")
