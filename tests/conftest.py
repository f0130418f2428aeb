from __future__ import annotations

import hypothesis

# A loaded machine is slow, which says nothing about the code.
hypothesis.settings.register_profile("forge", deadline=None)
hypothesis.settings.load_profile("forge")
