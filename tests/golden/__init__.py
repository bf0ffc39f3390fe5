"""Numbers of the authors' own modules, run once; see README.md for which code made them."""
