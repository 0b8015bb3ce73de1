"""`python -m skinvl`, which torchrun needs."""

from __future__ import annotations

from skinvl.cli import main

raise SystemExit(main())
