"""Keep time and remember: the wheel, the log, the tables. No socket is opened here."""
