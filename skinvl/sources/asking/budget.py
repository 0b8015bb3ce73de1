"""How much may be asked: in requests, tokens and money, with what all of it is going to cost."""

from __future__ import annotations

from dataclasses import dataclass

from skinvl.sources.asking.journal import Spent

MILLION = 1_000_000


class BudgetError(ValueError):
    """A budget that cannot be kept."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on what a journal may cost in all, runs before this one included; None is no limit."""

    requests: int | None = None
    tokens: int | None = None  # read and written
    money: float | None = None  # in the currency of the prices
    prompt_price: float = 0.0  # for a million tokens read
    completion_price: float = 0.0  # for a million tokens written

    def __post_init__(self) -> None:
        if self.money is not None and not (self.prompt_price or self.completion_price):
            raise BudgetError("a budget in money needs the prices of a million tokens, read and written")

    def cost(self, spent: Spent) -> float:
        """What the tokens cost."""
        return (spent.prompt_tokens * self.prompt_price + spent.completion_tokens * self.completion_price) / MILLION

    def forecast(self, spent: Spent, requests: int) -> Spent:
        """What so many requests cost in all if the rest is as what was spent."""
        share = requests / spent.requests if spent.requests else 0.0
        read, written = (round(share * tokens) for tokens in (spent.prompt_tokens, spent.completion_tokens))
        return Spent(requests, read, written)

    def allows(self, spent: Spent, running: int) -> bool:
        """Whether one more request fits beside those that run, each as dear as the dearest so far.

        As long as none was answered, a budget in tokens or money lets one run alone. It is overdrawn only by a reply
        that is dearer than all before it.

        Raises:
            BudgetError: there were replies, but the server does not tell what they cost.
        """
        more = running + 1
        if self.requests is not None and spent.requests + more > self.requests:
            return False
        if self.tokens is None and self.money is None:
            return True
        if not spent.requests:
            return not running
        if not spent.tokens:
            raise BudgetError("the server tells no token counts, so that a budget in tokens or money cannot be kept")
        then = Spent(
            spent.requests + more,
            spent.prompt_tokens + more * spent.prompt_most,
            spent.completion_tokens + more * spent.completion_most,
        )
        if self.tokens is not None and then.tokens > self.tokens:
            return False
        return self.money is None or self.cost(then) <= self.money

    def in_words(self, spent: Spent) -> str:
        """What was spent, in words."""
        money = f", {self.cost(spent):.2f} in money" if self.prompt_price or self.completion_price else ""
        return f"{spent.requests:,} requests, {spent.tokens:,} tokens{money}"
