"""The contract in code, and the only part of `minoots` that the node imports.

    times        instants, durations, timer ids
    definition   what a client asks for
    bodies       requests and replies, one struct each
    frames       MZP/1 frames and headers
    problems     the one table of refusals, and their exceptions

docs/protocol.md describes it in words.
"""
