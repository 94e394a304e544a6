"""Judges that need no language model: deterministic rules, named in every result that used them."""
