"""Pages with parts that scripts write: between markers, and compared with what is there."""

from __future__ import annotations

import re

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def with_part(page: str, name: str, content: str) -> str:
    """The page with what stands between its markers `<!-- NAME -->` and `<!-- /NAME -->` replaced.

    Raises:
        ValueError: the page doesn't hold both markers once, in this order.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(start) != 1 or page.count(end) != 1 or page.index(end) < page.index(start):
        raise ValueError(f"the page must hold {start} and {end} once each, in this order")
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def says_the_same(text: str, other: str) -> bool:
    """Whether two texts have the same words, and the same numbers up to one in the last digit.

    Processors round differently.
    """
    if NUMBER.split(text) != NUMBER.split(other):
        return False
    return all(
        len(one) == len(two) and abs(int(re.sub(r"\D", "", one)) - int(re.sub(r"\D", "", two))) <= 1
        for one, two in zip(NUMBER.findall(text), NUMBER.findall(other), strict=True)
    )
