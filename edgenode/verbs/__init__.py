"""The verbs: each takes the ledger and a call, and returns the body of its reply.

One that must wait (for the tables to follow) or is long is a generator: it yields the seq that the
tables must have reached, or 0 to let others go first, and returns the body.
"""
