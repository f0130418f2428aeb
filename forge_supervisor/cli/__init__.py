"""forgectl: what people reach for. Imports only what a client needs, as it is started for every look."""
