from __future__ import annotations

import hypothesis

# A loaded machine is slow, which says nothing about the code; and a checkout may belong to somebody else.
hypothesis.settings.register_profile("forge", deadline=None, database=None)
hypothesis.settings.load_profile("forge")
