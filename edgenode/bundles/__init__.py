"""Exchange between nodes that no network joins: signed files, carried by hand.

`keys.py` who is who; `sealed.py` the file, signed and encrypted; `book.py` what was sent and taken
in; `orders.py` commands on their way to a node; `send.py` writes a bundle; `receive.py` takes one
in: its part of the log into a `picture.py` of the node that sent it, its commands to our own node;
`view.py` answers questions from a picture. docs/decisions/0014-bundles.md says why.
"""
