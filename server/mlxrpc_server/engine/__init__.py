"""The worker process of one model: token ids in, token ids out. All array code lives here."""
