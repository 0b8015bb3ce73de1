"""`python -m skinvl.serve.drawing serve …`: `transformers serve`, which draws where a request asks for it."""

from __future__ import annotations

from typing import Any

from transformers.cli.serving.utils import BaseHandler
from transformers.cli.transformers import main as transformers_main

STOCK = BaseHandler._build_generation_config


def as_asked(handler: Any, body: dict[str, Any], *arguments: Any, **settings: Any) -> Any:
    """How a request is answered: as the engine says, and drawn where the request gives a temperature above 0.

    The engine itself keeps the `do_sample` of the folder, and answers greedily whatever the temperature is. A request
    that gives none is answered as in the evaluation.
    """
    config = STOCK(handler, body, *arguments, **settings)
    if body.get("temperature"):
        config.do_sample = True
        config.top_k = config.top_k or 0  # of all tokens; transformers' default is the likeliest 50
    return config


if __name__ == "__main__":
    BaseHandler._build_generation_config = as_asked  # type: ignore[method-assign, assignment]
    transformers_main()
