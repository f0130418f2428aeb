"""Cannot be imported."""

raise ImportError("no module of that kind")
