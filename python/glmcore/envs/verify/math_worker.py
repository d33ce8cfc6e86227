"""The process that compares mathematical answers: one JSON object a line in, one out.

Run by `glmcore.envs.verify.math`. Reads `[answer, reply]`, writes `[right, extracted]`. It sets no time limit of its
own: the parent kills it.
"""

import json
import logging
import os
import resource
import sys

MAX_MEMORY_BYTES = 4 << 30
"""Of addresses; powers of powers would take all that there is."""


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what libraries print is no answer
    logging.disable(logging.CRITICAL)  # that there are no time limits, and what could not be parsed
    sys.set_int_max_str_digits(0)  # long numbers compare as well as short ones
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

    def judge(answer: str, reply: str) -> tuple[bool, str | None]:
        found = parse(reply, targets, parsing_timeout=0)
        if not found:
            return False, None
        delimited = answer if "$" in answer or "\\boxed" in answer or "\\(" in answer else f"${answer}$"
        gold = parse(delimited, targets, parsing_timeout=0)
        return verify(gold, found, timeout_seconds=0), str(found[-1])

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        answer, reply = json.loads(line)
        try:
            told = judge(answer, reply)
        except (Exception, RecursionError):  # whatever sympy stumbles over, the answer is not right
            told = False, None
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
