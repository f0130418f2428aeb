"""Loads structlog without rich: where that is installed structlog has it, and pygments, at hand for tracebacks.

We print none of those, and a supervisor would carry 4 MiB of it for as long as it runs. Comes before all else that
loads structlog; who wants rich (`forgectl watch`) gets it afterwards.
"""

import sys

if "rich" not in sys.modules and "structlog" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment] # the import then fails, as if there were none
    try:
        import structlog as structlog  # noqa: PLC0414
    finally:
        del sys.modules["rich"]
