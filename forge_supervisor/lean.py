"""Loads what would bring along more than we use without that: comes before all else that loads these.

A supervisor, and each worker, would carry it for as long as it runs. structlog has rich, and pygments, at hand for
tracebacks, of which we print none (4 MiB; `forgectl watch` gets rich afterwards). asyncio has ssl for connections that
nobody here makes (1 MiB), and hashlib and hmac have OpenSSL for what they do themselves as well (3.5 MiB). Each of them
does without where there is none.
"""

import sys

_UNUSED = ("rich", "ssl", "_hashlib")
_absent = [name for name in _UNUSED if name not in sys.modules]
for _name in _absent:
    sys.modules[_name] = None  # type: ignore[assignment] # an import then fails, as if there were none
try:
    import asyncio as asyncio  # noqa: PLC0414
    import hashlib as hashlib  # noqa: PLC0414
    import hmac as hmac  # noqa: PLC0414

    import structlog as structlog  # noqa: PLC0414
finally:
    for _name in _absent:
        del sys.modules[_name]
