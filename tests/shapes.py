"""How the annotated shapes of the mathematics are checked while tests run."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# As type checkers see it, a whole number will do where a real one is asked for.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
