"""Durable consumers: readers of the log that acknowledge what they were given.

plan.py       what a configuration means, checked
state.py      one consumer: what it holds, what is ready, what is dead; pure
deadlines.py  when acknowledgements, delays and long polls run out
notes.py      all of it as notes of the log, and back from there at start
room.py       all consumers of a node
deliver.py    from the log to a waiting pull
"""
