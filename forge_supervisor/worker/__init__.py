"""Does, as one agent user, all that touches that user's realm; speaks with the supervisor over its stdin."""
