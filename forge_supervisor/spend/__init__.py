"""What agents have used, in tokens and in dollars: counted from what their harnesses tell, and kept across boots."""
