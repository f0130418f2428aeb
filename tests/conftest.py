from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
from hypothesis.configuration import set_hypothesis_home_dir

# A loaded machine is slow, which says nothing about the code; and a checkout may belong to somebody else.
hypothesis.settings.register_profile("forge", deadline=None, database=None)
hypothesis.settings.load_profile("forge")
set_hypothesis_home_dir(Path(tempfile.gettempdir(), f"forge-hypothesis-{os.getuid()}"))
